//! What is said on the way, for those who are told no number of what was cut.

use candle_core::Device;
use mc_embed::{CrossEncoder, EmbeddingModel};
use mc_testkit::Warnings;
use std::path::Path;

#[test]
fn what_is_cut_is_said() -> Result<(), Box<dyn std::error::Error>> {
    // Threads of the pool say it too.
    let said = Warnings::default();
    tracing::subscriber::set_global_default(said.clone())?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let long = "river mountain ".repeat(300);
    let texts = ["bread", &long, "paper"];
    EmbeddingModel::from_pretrained(golden.join("models/bert-mean"), Device::Cpu)?.encode(&texts)?;
    assert_eq!(said.take(), ["1 of 3 texts are cut at 48 tokens"]);
    let reranker = CrossEncoder::from_pretrained(golden.join("cross/bert"), Device::Cpu)?;
    reranker.score("bread", &texts[..1])?;
    assert!(said.take().is_empty());
    reranker.score("bread", &texts)?;
    assert_eq!(said.take(), ["1 of 3 pairs are cut at 60 tokens"]);
    Ok(())
}
