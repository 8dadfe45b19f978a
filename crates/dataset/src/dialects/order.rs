//! The order of turns, as far as no chat template could take another.

use super::Turn;

/// Refuses a chat that does not go from the user to the assistant, or that teaches nothing.
pub(super) fn check(turns: &[Turn]) -> Result<(), String> {
    let systems: Vec<_> = turns.iter().filter(|turn| turn.message.role == "system").collect();
    if let [_, second, ..] = systems.as_slice() {
        return Err(format!("`{}` is a second system turn; only one can be shown", second.name));
    }
    if let Some(late) = turns.iter().skip(1).find(|turn| turn.message.role == "system") {
        return Err(format!("`{}` is a system turn after others; it must be the first", late.name));
    }
    let mut others = turns.iter().filter(|turn| turn.message.role != "system");
    let Some(first) = others.next() else {
        return Err("it has only a system turn".into());
    };
    let role = |turn: &Turn| turn.message.role.clone();
    if role(first) != "user" {
        return Err(format!(
            "`{}` is the {}'s; the first turn after the system's must be the user's",
            first.name,
            role(first)
        ));
    }
    if let Some(last) = turns.last().filter(|turn| role(turn) != "assistant") {
        return Err(format!(
            "`{}`, the last turn, is the {}'s; it must be the assistant's",
            last.name,
            role(last)
        ));
    }
    if !turns.iter().any(|turn| role(turn) == "assistant" && turn.message.learned) {
        return Err(
            "no turn is learned: `weight` or `train` turns off every one of the assistant's".into(),
        );
    }
    Ok(())
}
