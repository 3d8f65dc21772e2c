//! `vigia keys`: who may use the API. Works on the store itself, whether the daemon runs or not.

use std::io::{self, Write};

use crate::{
    base::Result,
    cli::{Outcome, SettingsArgs, print, table::columns},
    store::Store,
};

/// Add, list and revoke the keys of the API
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key and print it: it cannot be shown again
    Add { name: String },
    /// List the names of the keys
    List,
    /// Refuse a key from now on
    Revoke { name: String },
}

pub(super) fn run(args: Args) -> Outcome {
    let dir = args.settings.load()?.loaded.settings.store_dir();
    let store = Store::open(&dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    print(&runtime.block_on(act(&store, args.action))?)?;
    // Keys of a user's own store say nothing to a daemon that runs with another; standard output stays clean.
    drop(writeln!(io::stderr(), "in the store {}", dir.display()));
    Ok(())
}

/// Carries one action out and says what to print.
async fn act(store: &Store, action: Action) -> Result<String> {
    match action {
        // The secret alone, so that it can be piped; how to use it stands in `vigia keys --help`.
        Action::Add { name } => Ok(store.add_key(&name).await? + "\n"),
        Action::List => {
            let rows: Vec<[String; 2]> =
                store.keys().await?.into_iter().map(|key| [key.name, key.created_at]).collect();
            if rows.is_empty() {
                return Ok(
                    "no keys: the daemon serves this machine alone (`vigia keys add NAME` makes one)\n".to_owned()
                );
            }
            Ok(columns(["name", "created"], &rows))
        }
        Action::Revoke { name } => {
            store.revoke_key(&name).await?;
            Ok(format!("{name} is revoked\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_added_listed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(act(&store, Action::List).await.unwrap().starts_with("no keys"));
        let secret = act(&store, Action::Add { name: "phone".to_owned() }).await.unwrap();
        assert_eq!(secret.lines().count(), 1);
        assert_eq!(store.check_key(secret.trim()).await.unwrap().as_deref(), Some("phone"));
        let list = act(&store, Action::List).await.unwrap();
        assert!(list.contains("phone") && !list.contains(secret.trim()), "{list}");
        act(&store, Action::Revoke { name: "phone".to_owned() }).await.unwrap();
        assert_eq!(store.check_key(secret.trim()).await.unwrap(), None);
        let error = act(&store, Action::Revoke { name: "phone".to_owned() }).await.unwrap_err();
        assert!(error.full().contains("phone"), "{}", error.full());
    }
}
