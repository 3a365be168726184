//! The playground: a throwaway cluster with a proxy in front, to play with and to test against.

pub mod cluster;
