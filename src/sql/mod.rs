//! (being built) temporary stand-in
#![allow(missing_docs)]
use std::sync::Arc;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Read,
    Write,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxControl {
    None,
    Begin { read_only: bool, serializable: bool },
    Commit,
    Rollback,
    RollbackTo,
    Other,
    Mixed,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingEffect {
    None,
    Set { name: Arc<str> },
    Reset { name: Arc<str> },
    ResetAll,
    DiscardAll,
    DeallocateAll,
}
#[derive(Clone, Debug)]
pub struct Classification {
    pub access: Access,
    pub statements: u16,
    pub tx: TxControl,
    pub setting: SettingEffect,
    pub pins: u32,
    pub tx_defaults: bool,
    pub wants_primary: bool,
}
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub classify_bytes_max: usize,
    pub read_functions: Vec<String>,
    pub write_functions: Vec<String>,
}
#[derive(Debug)]
pub struct Classifier;
impl Classifier {
    pub fn new(_seed: u64, _s: &Settings) -> Self {
        Self
    }
    pub fn classify(&mut self, text: &[u8]) -> Arc<Classification> {
        let t = String::from_utf8_lossy(text).trim().to_ascii_lowercase();
        let access = if t.starts_with("select") { Access::Read } else { Access::Write };
        let tx = if t.starts_with("begin") {
            TxControl::Begin { read_only: t.contains("read only"), serializable: false }
        } else if t.starts_with("commit") || t.starts_with("end") {
            TxControl::Commit
        } else if t.starts_with("rollback") {
            TxControl::Rollback
        } else {
            TxControl::None
        };
        Arc::new(Classification {
            access,
            statements: u16::from(!t.is_empty()),
            tx,
            setting: SettingEffect::None,
            pins: 0,
            tx_defaults: false,
            wants_primary: false,
        })
    }
    pub fn mark_write(&mut self, _text: &[u8]) {}
}
