//! The parts of a tensor's name.

/// Words in the names of parts that are no language model, or one that does not speak.
const OTHER_PARTS: [&str; 12] = [
    "vision",
    "visual",
    "image",
    "video",
    "audio",
    "speech",
    "encoder",
    "talker",
    "code2wav",
    "token2wav",
    "draft",
    "mtp",
];

/// Whether a name's beginning, or a key, is that of another part than the language model's decoder.
pub(crate) fn is_of_another_part(name: &str) -> bool {
    let name = name.to_lowercase();
    OTHER_PARTS.iter().any(|part| name.contains(part))
}

/// Takes a name apart at its first number: what stands before, the number, and what follows.
pub(crate) fn numbered(name: &str) -> Option<(&str, usize, &str)> {
    let mut from = 0;
    while let Some(dot) = name[from..].find('.') {
        let at = from + dot + 1;
        if name[at..].starts_with(|c: char| c.is_ascii_digit())
            && let Some((layer, rest)) = layer_and_rest(&name[at..])
        {
            return Some((&name[..at - 1], layer, rest));
        }
        from = at;
    }
    None
}

/// Takes what follows a container's name apart: a layer's number, and the rest.
pub(crate) fn layer_and_rest(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    // `01` is no layer: with another name it would be a second tensor of that name.
    (layer.to_string() == number).then_some((layer, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_at_their_first_number() {
        let experts = "model.layers.3.mlp.experts.17.w1.weight";
        assert_eq!(numbered(experts), Some(("model.layers", 3, "mlp.experts.17.w1.weight")));
        assert_eq!(numbered("h.0.attn.c_attn.weight"), Some(("h", 0, "attn.c_attn.weight")));
        for name in ["lm_head.weight", "model.layers.03.w", "0.weight", "model.layers.3", ""] {
            assert_eq!(numbered(name), None, "{name}");
        }
        for other in
            ["model.visual.blocks", "vision_config", "audio_tower.layers", "encoder.layers"]
        {
            assert!(is_of_another_part(other), "{other}");
        }
        for own in ["model.decoder.layers", "text_config", "model.language_model.layers"] {
            assert!(!is_of_another_part(own), "{own}");
        }
    }
}
