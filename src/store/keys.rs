//! Keys: named, revocable, and known only by their hash.
//!
//! A plain SHA-256 is enough, and right: a secret is 32 random bytes, so there is nothing to guess and nothing for
//! a slow password hash to protect, while every request pays for the check. It is compared by looking the hash up,
//! so timing tells about hashes at most, never about a secret.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Store, writer::Hurry};
use crate::base::{Error, Kind, Result, clock};

/// So that people and scanners for leaked secrets know one when they see it.
const PREFIX: &str = "vg_";
const SECRET_BYTES: usize = 32;
const NAME_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRow {
    pub name: String,
    pub created_at: String,
}

impl Store {
    /// Makes a key and returns its secret: the only time that it can be seen.
    pub async fn add_key(&self, name: &str) -> Result<String> {
        if !(1..=NAME_MAX).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(Error::invalid(format!("a key's name has 1 to {NAME_MAX} printable characters")));
        }
        let mut random = [0; SECRET_BYTES];
        getrandom::fill(&mut random)
            .map_err(|error| Error::unavailable("the system gives no random numbers").cause(error.to_string()))?;
        let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));

        let (row, hash, created_at) = (name.to_owned(), hash(&secret), clock::now_at());
        let added = self
            .change(Hurry::Now, move |db| {
                db.execute("INSERT INTO keys VALUES (?, ?, ?) ON CONFLICT DO NOTHING", params![row, hash, created_at])
            })
            .await?;
        if added == 0 {
            return Err(Error::invalid(format!("there is a key named `{name}` already"))
                .hint("choose another name, or revoke that one first"));
        }
        Ok(secret)
    }

    pub async fn keys(&self) -> Result<Vec<KeyRow>> {
        self.read(|db| {
            db.prepare_cached("SELECT name, created_at FROM keys ORDER BY name")?
                .query_map([], |row| Ok(KeyRow { name: row.get(0)?, created_at: row.get(1)? }))?
                .collect()
        })
        .await
    }

    /// The key is refused from now on.
    pub async fn revoke_key(&self, name: &str) -> Result<()> {
        let row = name.to_owned();
        match self.change(Hurry::Now, move |db| db.execute("DELETE FROM keys WHERE name = ?", [row])).await? {
            0 => Err(Error::new(Kind::NotFound, format!("there is no key named `{name}`"))
                .hint("`vigia keys list` shows them")),
            _ => Ok(()),
        }
    }

    pub async fn has_keys(&self) -> Result<bool> {
        self.read(|db| db.query_row("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))).await
    }

    /// The name of the key that this is the secret of, if any.
    pub async fn check_key(&self, secret: &str) -> Result<Option<String>> {
        let hash = hash(secret);
        self.read(move |db| {
            db.prepare_cached("SELECT name FROM keys WHERE hash = ?")?.query_row([hash], |row| row.get(0)).optional()
        })
        .await
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_opens_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!store.has_keys().await.unwrap());
        let phone = store.add_key("phone").await.unwrap();
        let tablet = store.add_key("tablet de María").await.unwrap();
        assert!(store.has_keys().await.unwrap());
        assert!(phone.starts_with("vg_") && phone.len() == 46 && phone != tablet, "{phone}");
        assert_eq!(store.check_key(&phone).await.unwrap().as_deref(), Some("phone"));
        for wrong in ["", "vg_", "phone", &phone[..45], &format!("{phone} ")] {
            assert_eq!(store.check_key(wrong).await.unwrap(), None, "{wrong}");
        }
        let names: Vec<String> = store.keys().await.unwrap().into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["phone", "tablet de María"]);

        store.revoke_key("phone").await.unwrap();
        assert_eq!(store.check_key(&phone).await.unwrap(), None);
        assert_eq!(store.check_key(&tablet).await.unwrap().as_deref(), Some("tablet de María"));
        assert_eq!(store.revoke_key("phone").await.unwrap_err().kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn bad_and_taken_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for bad in ["", "two\nlines", &"x".repeat(65)] {
            assert_eq!(store.add_key(bad).await.unwrap_err().kind(), Kind::Invalid);
        }
        let first = store.add_key("phone").await.unwrap();
        assert!(store.add_key("phone").await.unwrap_err().message().contains("already"));
        assert_eq!(store.check_key(&first).await.unwrap().as_deref(), Some("phone"));
    }

    #[tokio::test]
    async fn the_secret_itself_is_nowhere_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let secret = store.add_key("phone").await.unwrap();
        store.close(crate::store::testing::soon()).await.unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|it| it == secret.as_bytes()));
        }
    }
}
