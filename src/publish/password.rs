//! Who MQTT is spoken as: the user of the settings and the password out of its file. Used on both sides, by the
//! embedded broker to check and by the client to log in.

use std::fs;

use crate::{
    base::{Error, Result},
    settings,
};

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: String,
}

impl Login {
    /// `None` when the settings name no user.
    pub(super) fn read(settings: &settings::Mqtt) -> Result<Option<Login>> {
        if settings.username.is_empty() {
            return Ok(None);
        }
        let hint = "put the password, alone, into the file that mqtt.password_file names";
        if settings.password_file.is_empty() {
            return Err(Error::invalid("mqtt.username is set but mqtt.password_file is not").hint(hint));
        }
        let file = &settings.password_file;
        let text = fs::read_to_string(file).map_err(|error| {
            Error::invalid(format!("cannot read the MQTT password from {file}")).cause(error).hint(hint)
        })?;
        // Editors end a file with a line break; it is no part of the password.
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        if password.is_empty() {
            return Err(Error::invalid(format!("the MQTT password file {file} is empty")).hint(hint));
        }
        Ok(Some(Login { username: settings.username.clone(), password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::tests::settings;

    #[test]
    fn the_password_is_the_file_without_its_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "contraseña con espacios \r\n").unwrap();
        let mut mqtt = settings();
        mqtt.username = "glasses".to_owned();
        mqtt.password_file = file.to_str().unwrap().to_owned();
        assert_eq!(Login::read(&mqtt).unwrap().unwrap().password, "contraseña con espacios ");

        fs::write(&file, "\n").unwrap();
        assert!(Login::read(&mqtt).err().unwrap().message().contains("empty"));
        mqtt.password_file = "/nowhere/at/all".to_owned();
        assert!(Login::read(&mqtt).err().unwrap().full().contains("/nowhere/at/all"));
        mqtt.password_file.clear();
        assert!(Login::read(&mqtt).err().unwrap().message().contains("password_file"));
        mqtt.username.clear();
        assert!(Login::read(&mqtt).unwrap().is_none());
    }
}
