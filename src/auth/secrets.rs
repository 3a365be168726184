//! All that may know a user: the config file, then a userlist file, then `auth_query`.
//!
//! Invariants: the first source that has a secret for a user decides; building reports all
//! problems at once. Absent on purpose: watching files (a reload builds a new [`Secrets`]).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::error::AuthError;
use super::query::AuthQuery;
use super::secret::StoredSecret;
use super::userlist;
use crate::clock::Time;
use crate::config::AuthConfig;

/// Largest userlist file accepted, bytes: some hundred thousand users.
const USERLIST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The users that are known without asking a node.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    users: HashMap<String, Arc<StoredSecret>>,
}

impl Secrets {
    /// Takes the users of the config file and reads the userlist, if one is named. A user in both
    /// has the secret of the config file. Reads a file: not for the data plane's threads.
    ///
    /// # Errors
    /// Every problem found, one sentence each, none with a secret in it.
    pub fn from_config(config: &AuthConfig) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut users = HashMap::new();
        for user in &config.users {
            match StoredSecret::parse(user.secret.expose()) {
                Err(why) => problems.push(format!("[[auth.user]] \"{}\": {why}", user.name)),
                Ok(secret) => {
                    if users.insert(user.name.clone(), Arc::new(secret)).is_some() {
                        problems.push(format!("[[auth.user]] \"{}\": the user is there twice", user.name));
                    }
                }
            }
        }
        if let Some(path) = &config.userlist {
            match read_userlist(path) {
                Err(more) => problems.extend(more),
                Ok(list) => {
                    for (user, secret) in list {
                        users.entry(user).or_insert_with(|| Arc::new(secret));
                    }
                }
            }
        }
        if problems.is_empty() { Ok(Self { users }) } else { Err(problems) }
    }

    /// What is stored of a user.
    #[must_use]
    pub fn lookup_local(&self, user: &str) -> Option<Arc<StoredSecret>> {
        self.users.get(user).cloned()
    }

    /// How many users are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Is nobody known?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

fn read_userlist(path: &Path) -> Result<Vec<(String, StoredSecret)>, Vec<String>> {
    let shown = path.display().to_string();
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let read = File::open(path).and_then(|file| file.take(USERLIST_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| vec![format!("{shown}: cannot read the userlist: {error}")])?;
    if bytes.len() as u64 > USERLIST_BYTES_MAX {
        return Err(vec![format!("{shown}: the userlist is longer than {USERLIST_BYTES_MAX} bytes")]);
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        vec![format!("{shown}:{line}: the userlist is not UTF-8")]
    })?;
    userlist::parse(&shown, text)
}

/// All sources in order.
#[derive(Debug, Default)]
pub struct SecretSource {
    local: Secrets,
    query: Option<AuthQuery>,
}

impl SecretSource {
    /// Local users first, then the query, if there is one.
    #[must_use]
    pub fn new(local: Secrets, query: Option<AuthQuery>) -> Self {
        Self { local, query }
    }

    /// What is stored of `user`; `None`: no such user, or it may not log in.
    /// Cancel-safe: dropping it leaves the lookup to others who wait for the same user.
    ///
    /// # Errors
    /// [`AuthError::Unavailable`] and [`AuthError::QueryBroken`] of the query.
    pub async fn lookup(&self, user: &str, now: Time) -> Result<Option<Arc<StoredSecret>>, AuthError> {
        match (self.local.lookup_local(user), &self.query) {
            (None, Some(query)) => query.lookup(user, now).await,
            (found, _) => Ok(found),
        }
    }

    /// After a rejected login: asks the node again if `used` came from a kept answer that is not
    /// brand new. `Some`: the secret has changed; try [`super::ServerExchange::recheck`] with it.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn refresh(
        &self,
        user: &str,
        used: Option<&Arc<StoredSecret>>,
        now: Time,
    ) -> Result<Option<Arc<StoredSecret>>, AuthError> {
        match (self.local.lookup_local(user), &self.query) {
            (None, Some(query)) => query.refresh(user, used, now).await,
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Plain;
    use super::*;
    use crate::config::{AuthMethod, Secret, UserConfig};
    use std::path::PathBuf;
    use std::time::Duration;

    fn config(users: &[(&str, &str)], userlist: Option<PathBuf>) -> AuthConfig {
        let user = |(name, secret): &(&str, &str)| UserConfig { name: (*name).into(), secret: Secret::new(*secret) };
        AuthConfig {
            method: AuthMethod::ScramSha256,
            hba_file: None,
            ident_file: None,
            users: users.iter().map(user).collect(),
            userlist,
            auth_query: None,
            auth_query_user: String::new(),
            auth_query_password: Secret::default(),
            auth_query_database: String::new(),
            auth_query_ttl: Duration::ZERO,
            failed_logins_per_address: 0,
            failed_logins_per_user: 0,
        }
    }

    struct TempFile(PathBuf);

    impl TempFile {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("pgregent-{}-{name}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn plain(text: &str) -> Option<Arc<StoredSecret>> {
        Some(Arc::new(StoredSecret::Plain(Plain::new(Secret::new(text)))))
    }

    #[test]
    fn the_config_file_goes_before_the_userlist() {
        let list = TempFile::new("both", b"\"joe\" \"from list\"\n\"ann\" \"hers\"\n");
        let secrets = Secrets::from_config(&config(&[("joe", "from config")], Some(list.0.clone()))).unwrap();
        assert_eq!(secrets.lookup_local("joe"), plain("from config"));
        assert_eq!(secrets.lookup_local("ann"), plain("hers"));
        assert_eq!(secrets.lookup_local("Ann"), None, "names are case-sensitive");
        assert_eq!(secrets.len(), 2);
    }

    #[test]
    fn all_problems_at_once() {
        let list = TempFile::new("bad", b"\"ok\" \"x\"\n\"caf\xe9\" \"x\"\n");
        let users = [("a", ""), ("b", "x"), ("b", "y"), ("c", "SCRAM-SHA-256$hunter2")];
        let problems = Secrets::from_config(&config(&users, Some(list.0.clone()))).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems[0].contains("\"a\": the secret is empty"));
        assert!(problems[1].contains("\"b\": the user is there twice"));
        assert!(problems[2].contains("\"c\": the secret begins with") && !problems[2].contains("hunter2"));
        assert!(problems[3].ends_with(":2: the userlist is not UTF-8"));
        let missing = Secrets::from_config(&config(&[], Some("no/such/file".into()))).unwrap_err();
        assert!(missing[0].starts_with("no/such/file: cannot read the userlist"), "{missing:?}");
    }
}
