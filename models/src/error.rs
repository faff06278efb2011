//! How errors are told to people.

use crate::files::with_final_names;
use std::error::Error;

/// The chain of causes in one sentence, each once: many errors quote their cause in their own words already. Directories
/// under construction have their final names.
pub fn sentence(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !sentence.contains(&text) {
            sentence = format!("{sentence}: {text}");
        }
        cause = error.source();
    }
    with_final_names(&sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileError;

    /// "no such file: no such file" makes a reader look for two files.
    #[test]
    fn a_cause_is_told_once() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let told = sentence(&FileError::io(std::path::Path::new("x.json"))(source));
        assert_eq!(told.matches("not found").count(), 1, "{told}");
    }
}
