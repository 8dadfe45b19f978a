//! How long each stage of a run took, as its folder notes it.

use std::path::Path;

use checkpoint::read_json;
use serde::Deserialize;

use crate::Result;

/// The wall time of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageTime {
    /// The name of its note, which is that of what it leaves: `record`, `adapter`.
    pub name: String,
    /// Seconds it took when it was made.
    pub seconds: f64,
}

/// What a note says, among other things.
#[derive(Deserialize)]
struct Note {
    seconds: f64,
    #[serde(default)]
    is_part: bool,
}

/// The times in the notes `stages/NAME.json` of a run's folder, by when the notes were written; none if it keeps none. What was
/// made as a part of another stage, such as the winner of a race, is in that one's time.
///
/// # Errors
///
/// If a note cannot be read, or has no `seconds`.
pub fn read_timings(run: &Path) -> Result<Vec<StageTime>> {
    let folder = run.join("stages");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Note { seconds, is_part } = read_json(&path)?;
        if is_part {
            continue;
        }
        found.push((fs_err::metadata(&path)?.modified().ok(), StageTime { name, seconds }));
    }
    found.sort_by(|(one, of_one), (other, of_other)| {
        one.cmp(other).then_with(|| of_one.name.cmp(&of_other.name))
    });
    Ok(found.into_iter().map(|(_, time)| time).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_in_the_order_they_were_written() {
        let folder = testkit::temporary_folder();
        assert_eq!(read_timings(folder.path()).unwrap(), []);
        let stages = folder.path().join("stages");
        fs_err::create_dir_all(&stages).unwrap();
        let second = std::time::Duration::from_secs(1);
        let begun = std::time::SystemTime::now();
        for (age, name, seconds) in [(3, "prune", 0.25), (1, "fit", 2.0), (2, "collect", 61.5)] {
            let path = stages.join(format!("{name}.json"));
            fs_err::write(&path, format!("{{\"recipe\": {{}}, \"seconds\": {seconds}}}")).unwrap();
            let file = fs_err::OpenOptions::new().append(true).open(path).unwrap();
            file.into_parts().0.set_modified(begun - 10 * second + age * second).unwrap();
        }
        fs_err::write(stages.join("other.txt"), "").unwrap();
        let part = r#"{"recipe": {}, "seconds": 9.0, "is_part": true}"#;
        fs_err::write(stages.join("part.json"), part).unwrap();
        let found = read_timings(folder.path()).unwrap();
        let found: Vec<_> = found.iter().map(|time| (time.name.as_str(), time.seconds)).collect();
        assert_eq!(found, [("fit", 2.0), ("collect", 61.5), ("prune", 0.25)]);
        fs_err::write(stages.join("x.json"), "{}").unwrap();
        let error = read_timings(folder.path()).unwrap_err();
        assert!(format!("{error:?}").contains("x.json"), "{error:?}");
    }
}
