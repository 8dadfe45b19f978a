//! What an interrupt does while a model is run: a training saves its state and stops, other stages stop where they are;
//! a second interrupt ends the program at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_default};

/// Takes SIGINT and SIGTERM.
pub(crate) fn stop_after_the_step() {
    let flag = finetune::stop_flag();
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first one finds the flag down and raises it, the second finds it up.
        let taken = register_conditional_default(signal, std::sync::Arc::clone(&flag))
            .and_then(|_| register(signal, std::sync::Arc::clone(&flag)));
        if let Err(error) = taken {
            tracing::warn!(%error, "an interrupt will end the program without saving");
        }
    }
}
