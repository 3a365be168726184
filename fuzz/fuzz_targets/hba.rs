//! Files of rules and maps that include each other.
//!
//! Promises: reading ends; files give rules or problems, each with file and line and on one line; a decision is
//! the same however much is known beforehand.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::auth::hba::{Attempt, Files, Hba, Known, Network, Roles};
use pgregent::net::Peer;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Three files; every other name is missing.
struct Memory([String; 3]);

impl Files for Memory {
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<String> {
        let text = match path.to_str() {
            Some("a") => &self.0[0],
            Some("b") => &self.0[1],
            Some("c") => &self.0[2],
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        if text.len() > bytes_max { Err(io::Error::other("too long")) } else { Ok(text.clone()) }
    }

    fn names(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(["a", "b", "c", "x.conf"].map(str::to_owned).to_vec())
    }
}

fuzz_target!(|input: ([String; 3], String, String, [u8; 4], bool)| {
    let (files, user, database, address, encrypted) = input;
    let hba = match Hba::load(Path::new("a"), Some(Path::new("b")), &Memory(files)) {
        Ok(hba) => hba,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.contains('\n')), "{problems:?}");
            return;
        }
    };
    let peer = Peer::Tcp((address, 5432).into());
    let attempt = Attempt { peer, encrypted, user: &user, database: &database, replication: false };
    let all = Known {
        roles: Some(Arc::new(Roles::from([user.as_str().into(), "staff".into()]))),
        host_name: Some(Some("db.example.com".into())),
        interfaces: Network::with_prefix([127, 0, 0, 1].into(), 8).map(|network| [network].into()),
    };
    let place = |known: &Known| hba.decide(&attempt, known).map(|rule| rule.map(|rule| rule.place.clone()));
    let decided = place(&all).expect("everything is known");
    if let Ok(early) = place(&Known::default()) {
        assert_eq!(early, decided);
    }
    let _ = hba.permit(Some("m"), &user, &database, &all).expect("everything is known");
});
