//! A small semantic search: the sentences of a file, ranked by how near they are to a query.
//!
//! Run with: `cargo run --release -p mc-examples --bin embed -- MODEL_DIR "which metal is warm?" sentences.txt`

use metal_candle::{embeddings::cosine_similarity, prelude::*};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(query), Some(file)) = (args.next(), args.next(), args.next()) else {
        anyhow::bail!("usage: embed MODEL_DIR QUERY FILE")
    };
    let text = std::fs::read_to_string(&file)?;
    let sentences: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    anyhow::ensure!(!sentences.is_empty(), "{file} has no sentences");

    // A directory; with `--features metal-candle/hub` also an `EmbeddingModelType` or an id on the hub.
    let model = EmbeddingModel::from_pretrained(model, Device::new_with_fallback(0))?;
    let documents = model.encode_document(&sentences)?; // (sentences, dimensions)
    let query = model.encode_query(&[query])?; // (1, dimensions)

    let scores = cosine_similarity(&query, &documents)?.squeeze(0)?.to_vec1::<f32>()?;
    let mut ranked: Vec<_> = scores.iter().zip(&sentences).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(a.0));
    for (score, sentence) in ranked.into_iter().take(5) {
        println!("{score:.3}  {sentence}");
    }
    Ok(())
}
