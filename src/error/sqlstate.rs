//! The SQLSTATE codes this proxy itself sends (PostgreSQL docs, appendix A).
//!
//! Absent on purpose: codes that only nodes send; those pass through as bytes.

use std::fmt;

/// A five-character error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// connection_failure
    pub const CONNECTION_FAILURE: Self = Self("08006");
    /// transaction_resolution_unknown
    pub const RESOLUTION_UNKNOWN: Self = Self("08007");
    /// protocol_violation
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    /// feature_not_supported
    pub const FEATURE_NOT_SUPPORTED: Self = Self("0A000");
    /// invalid_parameter_value
    pub const INVALID_PARAMETER_VALUE: Self = Self("22023");
    /// in_failed_sql_transaction
    pub const IN_FAILED_TRANSACTION: Self = Self("25P02");
    /// read_only_sql_transaction
    pub const READ_ONLY_TRANSACTION: Self = Self("25006");
    /// invalid_sql_statement_name
    pub const INVALID_STATEMENT_NAME: Self = Self("26000");
    /// invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    /// invalid_password
    pub const INVALID_PASSWORD: Self = Self("28P01");
    /// invalid_catalog_name
    pub const INVALID_CATALOG_NAME: Self = Self("3D000");
    /// serialization_failure
    pub const SERIALIZATION_FAILURE: Self = Self("40001");
    /// duplicate_prepared_statement
    pub const DUPLICATE_STATEMENT: Self = Self("42P05");
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    /// program_limit_exceeded
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self("54000");
    /// object_not_in_prerequisite_state
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self("55000");
    /// query_canceled
    pub const QUERY_CANCELED: Self = Self("57014");
    /// admin_shutdown
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
    /// cannot_connect_now
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    /// internal_error
    pub const INTERNAL_ERROR: Self = Self("XX000");
}

/// Codes that a node may refuse startup settings or end a session with, and that are passed on as they are.
const PASSED_ON: &[SqlState] = &[
    SqlState("22023"),
    SqlState("25001"),
    SqlState("28000"),
    SqlState("28P01"),
    SqlState("3D000"),
    SqlState("42501"),
    SqlState("42601"),
    SqlState("42602"),
    SqlState("42704"),
    SqlState("42P02"),
    SqlState("53300"),
    SqlState::NOT_IN_PREREQUISITE_STATE,
    SqlState("55P02"),
    SqlState("55P04"),
    // A cancel request that comes while the settings are made.
    SqlState("57014"),
    // How a node ends a session that was told to end: by an administrator, a crash, a dropped database, a timeout.
    SqlState::ADMIN_SHUTDOWN,
    SqlState("57P02"),
    SqlState("57P03"),
    SqlState("57P04"),
    SqlState("57P05"),
    SqlState("25P03"),
    SqlState("0A000"),
];

impl SqlState {
    /// This code if it is one of the few that are passed on from a node, internal_error otherwise.
    #[must_use]
    pub fn known(code: &[u8]) -> Self {
        PASSED_ON.iter().copied().find(|known| known.0.as_bytes() == code).unwrap_or(Self::INTERNAL_ERROR)
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::SqlState;

    #[test]
    fn what_a_node_says_keeps_its_code() {
        for code in ["57014", "57P01", "57P05", "3D000"] {
            assert_eq!(SqlState::known(code.as_bytes()).0, code);
        }
        assert_eq!(SqlState::known(b"ZZ999"), SqlState::INTERNAL_ERROR);
    }
}
