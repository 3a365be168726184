//! Decides who is primary (pure), then carries it out.
//!
//! Pure files: `event`, `action`, `conninfo`, `machine` and their neighbours: no await, no clock, no log, no
//! random. `controller` drives them, `execute` and `hooks` perform actions and reports back as events.

pub mod action;
mod ailment;
pub mod candidate;
pub mod conninfo;
pub mod controller;
pub mod event;
pub mod execute;
pub mod hold;
pub mod hooks;
pub mod machine;
mod node_state;
pub mod policy;
pub mod promise;
mod rules;
pub mod standing;
pub mod state;
pub mod sync;

pub use hold::Hold;
pub use machine::{LastFailover, Machine, NodeOutlook, Outlook, Summary};
pub use policy::Policy;
