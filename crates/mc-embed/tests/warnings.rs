//! What is said on the way, for those who are told no number of what was cut.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use candle_core::Device;
use mc_embed::{CrossEncoder, EmbeddingModel};
use std::{fmt::Debug, path::Path, sync::Mutex};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

static SAID: Mutex<Vec<String>> = Mutex::new(vec![]);

/// Keeps warnings.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata) -> bool {
        *metadata.level() == Level::WARN
    }
    fn event(&self, event: &Event) {
        struct Message;
        impl Visit for Message {
            fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
                SAID.lock().unwrap().push(format!("{value:?}"));
            }
        }
        event.record(&mut Message);
    }
    fn new_span(&self, _: &Attributes) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn what_is_cut_is_said() -> Result<(), Box<dyn std::error::Error>> {
    tracing::subscriber::set_global_default(Warnings)?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let long = "river mountain ".repeat(300);
    let texts = ["bread", &long, "paper"];
    EmbeddingModel::from_pretrained(golden.join("models/bert-mean"), Device::Cpu)?.encode(&texts)?;
    assert_eq!(SAID.lock().unwrap().drain(..).collect::<Vec<_>>(), ["1 of 3 texts are cut at 48 tokens"]);
    let reranker = CrossEncoder::from_pretrained(golden.join("cross/bert"), Device::Cpu)?;
    reranker.score("bread", &texts[..1])?;
    assert!(SAID.lock().unwrap().is_empty());
    reranker.score("bread", &texts)?;
    assert_eq!(SAID.lock().unwrap().drain(..).collect::<Vec<_>>(), ["1 of 3 pairs are cut at 60 tokens"]);
    Ok(())
}
