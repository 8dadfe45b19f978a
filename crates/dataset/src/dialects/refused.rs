//! Rows that are for other trainings than this one.

use crate::fields::Fields;

const PREFERENCE: &[&str] = &["chosen", "rejected"];
const NOT_TEXT: &[&str] =
    &["image", "images", "<image>", "image_url", "video", "videos", "audio", "audios"];

/// Refuses rows of preferences, and rows that hold more than text.
pub(super) fn check(row: &Fields<'_>) -> Result<(), String> {
    let found =
        |keys: &[&'static str]| keys.iter().copied().find(|key| row.has_more_than_nothing(key));
    if let Some(key) = found(PREFERENCE) {
        return Err(format!(
            "`{key}` makes this a preference row, and only supervised fine-tuning is supported; keep \
             the better reply alone, as the last of `messages`"
        ));
    }
    if let Some(key) = found(NOT_TEXT) {
        return Err(format!(
            "`{key}` is not text, and only supervised fine-tuning on text is supported; pass \
             `--ignore-fields {key}` to skip it"
        ));
    }
    Ok(())
}
