//! Log levels as people write them: `"info"`, or per module `"info,vigia::media=debug"`.

use std::str::FromStr;

use log::LevelFilter;
use serde::Deserialize;

/// What is logged, per module path; the empty path is everything else.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Levels(Vec<(String, LevelFilter)>);

impl Levels {
    pub fn directives(&self) -> &[(String, LevelFilter)] {
        &self.0
    }
}

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Levels, String> {
        let mut levels = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (module, level) = part.split_once('=').unwrap_or(("", part));
            let level = level.trim().parse().map_err(|_| {
                format!("`{part}` is no log level: expected error, warn, info, debug, trace or off, or module=level")
            })?;
            levels.push((module.trim().to_owned(), level));
        }
        if levels.is_empty() {
            return Err("expected a log level such as \"info\" or \"info,vigia::media=debug\"".to_owned());
        }
        Ok(Levels(levels))
    }
}

impl TryFrom<String> for Levels {
    type Error = String;

    fn try_from(text: String) -> Result<Levels, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_stands_alone_or_with_its_module() {
        let levels: Levels = "info, vigia::media=debug,rumqttd=off".parse().unwrap();
        let expected = [("", LevelFilter::Info), ("vigia::media", LevelFilter::Debug), ("rumqttd", LevelFilter::Off)];
        assert_eq!(levels.directives(), expected.map(|(module, level)| (module.to_owned(), level)));
    }

    #[test]
    fn what_is_no_level_is_named() {
        assert!("loud".parse::<Levels>().unwrap_err().contains("`loud`"));
        assert!("info,vigia=".parse::<Levels>().unwrap_err().contains("`vigia=`"));
        assert!(" , ".parse::<Levels>().is_err());
    }
}
