//! Names of cipher suites and protocol versions, as PostgreSQL (that is OpenSSL) writes them.
//!
//! Invariants: every suite the library offers has one name here, and is found by it and by its IANA
//! name. Absent on purpose: weaker suites than the library has; it has none worth a warning.

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;

/// `TLS_AES_256_GCM_SHA384`, `ECDHE-RSA-AES256-GCM-SHA384`.
#[must_use]
pub fn cipher_name(suite: SupportedCipherSuite) -> String {
    let iana = iana_name(suite);
    match iana.strip_prefix("TLS_").filter(|rest| rest.contains("_WITH_")) {
        None => iana,
        Some(rest) => {
            let name = rest.replace("_WITH_", "-").replace('_', "-").replace("AES-", "AES");
            name.strip_suffix("-SHA256").filter(|name| name.ends_with("POLY1305")).map_or(name.clone(), str::to_owned)
        }
    }
}

fn iana_name(suite: SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    name.strip_prefix("TLS13_").map_or(name.to_owned(), |rest| format!("TLS_{rest}"))
}

/// The suite of a name.
#[must_use]
pub fn cipher_of_name(name: &str) -> Option<SupportedCipherSuite> {
    ALL_CIPHER_SUITES.iter().copied().find(|suite| cipher_name(*suite) == name || iana_name(*suite) == name)
}

/// All names, in the library's order of preference.
#[must_use]
pub fn cipher_names() -> Vec<String> {
    ALL_CIPHER_SUITES.iter().map(|suite| cipher_name(*suite)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_called_as_openssl_calls_them() {
        let mut names = cipher_names();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "ECDHE-ECDSA-AES128-GCM-SHA256",
                "ECDHE-ECDSA-AES256-GCM-SHA384",
                "ECDHE-ECDSA-CHACHA20-POLY1305",
                "ECDHE-RSA-AES128-GCM-SHA256",
                "ECDHE-RSA-AES256-GCM-SHA384",
                "ECDHE-RSA-CHACHA20-POLY1305",
                "TLS_AES_128_GCM_SHA256",
                "TLS_AES_256_GCM_SHA384",
                "TLS_CHACHA20_POLY1305_SHA256",
            ]
        );
        assert!(names.iter().all(|name| cipher_of_name(name).is_some()));
        assert_eq!(
            cipher_of_name("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256").map(cipher_name).as_deref(),
            Some("ECDHE-RSA-AES128-GCM-SHA256")
        );
        assert!(cipher_of_name("DES-CBC3-SHA").is_none());
    }
}
