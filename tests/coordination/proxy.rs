//! A store on a thread of its own, as a proxy has it, that can be stopped where it stands.
//!
//! Invariants: while it is frozen nothing of the store runs; its last word can be read all the same. Absent on
//! purpose: which store it is.

use crate::link::Link;
use pgregent::coordination::Store;
use pgregent::coordination::conformance::{Handle, Way};
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// One proxy's store.
pub struct Proxy {
    store: Arc<dyn Store>,
    /// To the servers.
    links: Vec<Link>,
    /// Blocks the thread until the sender of the receiver is gone.
    blocks: UnboundedSender<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
    held: Mutex<Option<mpsc::Sender<()>>>,
}

impl Proxy {
    /// Opens it within the thread's runtime.
    pub fn open<S: Store + 'static>(links: Vec<Link>, open: impl FnOnce() -> S + Send + 'static) -> Self {
        let (blocks, mut blocks_rx) = unbounded_channel::<(mpsc::Sender<()>, mpsc::Receiver<()>)>();
        let (made, store) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let store: Arc<dyn Store> = Arc::new(open());
                if let Some(task) = store.task() {
                    tokio::spawn(task);
                }
                made.send(store).unwrap();
                while let Some((stands, until)) = blocks_rx.recv().await {
                    stands.send(()).unwrap();
                    let _ = until.recv();
                }
            });
        });
        Self { store: store.recv().expect("the store opens"), links, blocks, held: Mutex::new(None) }
    }
}

impl Handle for Proxy {
    fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn freeze(&self) {
        let (stands, standing_still) = mpsc::channel();
        let (held, until) = mpsc::channel();
        self.blocks.send((stands, until)).unwrap();
        standing_still.recv().expect("the thread runs");
        *self.held.lock().unwrap() = Some(held);
    }

    fn thaw(&self) {
        *self.held.lock().unwrap() = None;
    }

    fn link(&self, way: Way) {
        self.links.iter().for_each(|link| link.set(way));
    }
}
