//! Failures as the daemon is told them: bounded, with the step and the kernel's answer.

use crate::protocol::{Failure, MAX_DETAIL};

/// The longest name of a step, in bytes. Ours have at most a dozen.
const MAX_STEP: usize = 64;

/// Makes a failure of the shim's own. `errno` is 0 where it was not the kernel that refused.
pub fn new(step: &str, errno: i32, detail: &str) -> Failure {
    cut(Failure { step: step.to_owned(), errno, detail: detail.to_owned() })
}

/// Makes a failure out of an I/O error: what was being done, and the kernel's answer.
pub fn io(step: &str, doing: &str, error: &std::io::Error) -> Failure {
    let detail = if error.raw_os_error().is_some() { doing.to_owned() } else { format!("{doing}: {error}") };
    new(step, error.raw_os_error().unwrap_or(0), &detail)
}

/// Cuts the texts of a failure that a stranger sent.
pub fn cut(mut failure: Failure) -> Failure {
    truncate(&mut failure.step, MAX_STEP);
    truncate(&mut failure.detail, MAX_DETAIL);
    failure
}

fn truncate(text: &mut String, max: usize) {
    text.truncate(text.floor_char_boundary(max));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        let failure = new("step", 0, &"ä".repeat(MAX_DETAIL));
        assert_eq!(failure.detail.len(), MAX_DETAIL);
        let failure = new("step", 0, &format!("x{}", "ä".repeat(MAX_DETAIL)));
        assert_eq!(failure.detail.len(), MAX_DETAIL - 1);
    }
}
