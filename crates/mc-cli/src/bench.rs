//! `metal-candle bench`: how fast this machine runs a model, and how much memory that takes. It times the engine and
//! the trainer that the other commands use, on random tokens: speed does not depend on which. Knows no peers.

mod measured;
mod texts;

use crate::{failure::wrong, finetune::targets, global::Global, source::open_decoder};
use anyhow::Result;
use measured::{Report, Spread};
use metal_candle::{
    backend::{Purpose, Stream},
    inference::{KVCache, KVCacheConfig, SamplingStrategy, TokenOptions, generate_tokens, sample_token},
    lora::{LoRAAdapter, LoRAAdapterConfig},
    models::{CausalLM, Model, ModelConfig, Pass},
    prelude::DType,
    training::{Batch, Example, LRScheduler, Trainer, TrainingConfig},
};
use serde_json::{Map, json};
use std::time::{Duration, Instant};

/// Measure tokens per second and memory on this machine
#[derive(clap::Args)]
#[command(
    after_help = "Without --train it reads --prompt random tokens and generates --gen more, of which the first comes with the \
    prompt. With --train it does optimizer steps on --batch rows of --seq random tokens, the same rows at each step: the \
    loss must fall. One run warms up and is not counted; of the others the median stands, with the lowest and highest.\n\n\
    Examples:\n  metal-candle bench --model models/qwen --threads 2\n  \
    metal-candle bench --model models/qwen --train --target q_proj,v_proj --seq 512 --json\n  \
    metal-candle bench --model models/minilm --texts notes.txt"
)]
pub(crate) struct Args {
    /// Directory or hub id of the model; it needs no tokenizer [default: the embedded one]
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// Runs that are counted
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Seed of the random tokens and of the adapter's first values
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "texts")]
    seed: u64,

    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["train", "texts"], help_heading = "Generation")]
    prompt: u32,
    /// Tokens to generate; with 1 there is only the prompt to time
    #[arg(long = "gen", default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["train", "texts"], help_heading = "Generation")]
    generate: u32,
    /// Read the whole sequence again for each token, to see what the cache is worth
    #[arg(long, conflicts_with_all = ["train", "texts"], help_heading = "Generation")]
    without_cache: bool,

    /// Time the lines of a file instead, each a text that --model turns into a vector
    #[arg(long, value_name = "FILE|-", conflicts_with = "train", help_heading = "Embeddings")]
    texts: Option<String>,

    /// Time optimizer steps instead
    #[arg(long, help_heading = "Training")]
    train: bool,
    /// Rows of a step
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096), requires = "train", help_heading = "Training")]
    batch: u16,
    /// Tokens of a row that the model reads; it learns what follows each
    #[arg(long, default_value_t = 256, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..), requires = "train", help_heading = "Training")]
    seq: u32,
    /// all-linear, names such as q_proj,v_proj, or a regular expression over paths
    #[arg(long, default_value = "all-linear", value_name = "TARGETS", requires = "train", help_heading = "Training")]
    target: String,
    /// Width of the trained matrices
    #[arg(long, default_value_t = 8, value_name = "R", requires = "train", help_heading = "Training")]
    rank: usize,
    /// Less memory, for the time of computing each block forward twice
    #[arg(long, requires = "train", help_heading = "Training")]
    grad_checkpoint: bool,
}

impl Args {
    /// Whether it times what `embed` runs.
    pub(crate) fn embeds(&self) -> bool {
        self.texts.is_some()
    }
}

/// Measures; `start` is when the process began.
pub(crate) fn run(global: &Global, args: &Args, start: Instant) -> Result<()> {
    if let Some(file) = &args.texts {
        return texts::run(global, args, file);
    }
    let adapter = adapter_config(args)?;
    let dir = open_decoder(global, args.model.as_deref())?;
    check_lengths(args, &ModelConfig::read(&dir)?)?;
    let model = global.loader()?.load_dir(&dir)?;
    let bench = Bench { global, args, model: &model };
    let report = if args.train { bench.train(adapter)? } else { bench.generate(start)? };
    report.tell(global, &model, dir.name())
}

fn adapter_config(args: &Args) -> Result<LoRAAdapterConfig> {
    let target_modules = targets(&args.target)?;
    let config = LoRAAdapterConfig { rank: args.rank, target_modules, seed: args.seed, ..LoRAAdapterConfig::default() };
    config.check()?;
    Ok(config)
}

/// Whether the model's context holds what is asked for. The last token generated is not read again.
fn check_lengths(args: &Args, config: &ModelConfig) -> Result<()> {
    let context = config.max_position_embeddings;
    let (what, tokens) = if args.train {
        ("`--seq` is", args.seq as usize)
    } else {
        ("`--prompt` and `--gen` make", (args.prompt as usize).saturating_add(args.generate as usize - 1))
    };
    if tokens <= context {
        return Ok(());
    }
    Err(wrong(
        format!("{what} {tokens} tokens to read, expected at most {context}"),
        "that is the model's whole context",
    ))
}

struct Bench<'a> {
    global: &'a Global,
    args: &'a Args,
    model: &'a Model,
}

impl Bench<'_> {
    fn generate(&self, start: Instant) -> Result<Report> {
        let (prompt, generate) = (self.args.prompt as usize, self.args.generate as usize);
        let ids = self.tokens(0, prompt);
        let mut first_token = None;
        let mut once = || -> Result<(Duration, Duration)> {
            let on_token = || {
                first_token.get_or_insert_with(|| start.elapsed());
            };
            if self.args.without_cache { self.reread(ids.clone(), on_token) } else { self.cached(&ids, on_token) }
        };
        self.global.say("warming up");
        once()?;
        let (mut prefill, mut decode) = (vec![], vec![]);
        for i in 1..=self.args.repeat {
            let (first, rest) = once()?;
            let speed = per_second(prompt, first);
            prefill.push(speed);
            let mut line = format!("run {i}/{}: prefill {speed:.1}", self.args.repeat);
            if generate > 1 {
                let speed = per_second(generate - 1, rest);
                decode.push(speed);
                line = format!("{line}, decode {speed:.1}");
            }
            self.global.say(line + " tokens/s");
        }
        let mut facts = Map::new();
        facts.insert("prompt_tokens".into(), json!(prompt));
        facts.insert("generated_tokens".into(), json!(generate));
        facts.insert("cache".into(), json!(!self.args.without_cache));
        facts.insert("first_token_seconds".into(), json!(first_token.map(|time| time.as_secs_f64())));
        let again = if self.args.without_cache { " without cache" } else { "" };
        let speeds = vec![
            ("prefill", format!("prefill of {prompt} tokens"), Spread::of(prefill)),
            ("decode", format!("decode of {generate} tokens{again}"), Spread::of(decode)),
        ];
        Ok(Report { mode: "generate", speeds, facts })
    }

    /// Times to the first logits and of the tokens after the first, as `metal-candle generate` goes.
    fn cached(&self, ids: &[u32], mut on_token: impl FnMut()) -> Result<(Duration, Duration)> {
        let max_tokens = self.args.generate as usize;
        let options = TokenOptions { max_tokens, ..TokenOptions::default() };
        let mut cache = KVCache::new(&**self.model, KVCacheConfig::for_answer(&**self.model, ids.len(), max_tokens))?;
        let seen = |_, _| {
            on_token();
            true
        };
        let run = generate_tokens(&**self.model, ids, &mut cache, None, &options, seen)?;
        Ok((run.prefill_time, run.decode_time))
    }

    /// The same, each token from a pass over all that come before it.
    fn reread(&self, mut ids: Vec<u32>, mut on_token: impl FnMut()) -> Result<(Duration, Duration)> {
        let mut times = vec![];
        for _ in 0..self.args.generate {
            let begin = Instant::now();
            ids.push(next_token(&**self.model, &ids)?);
            times.push(begin.elapsed());
            on_token();
        }
        Ok((times[0], times[1..].iter().sum()))
    }

    fn train(&self, adapter: LoRAAdapterConfig) -> Result<Report> {
        let (rows, seq) = (self.args.batch as usize, self.args.seq as usize);
        let adapter = LoRAAdapter::new(&**self.model, adapter)?;
        let trained = adapter.num_parameters();
        let config = TrainingConfig {
            batch_size: rows,
            grad_checkpoint: self.args.grad_checkpoint,
            lr_scheduler: LRScheduler::constant(1e-4),
            ..TrainingConfig::default()
        };
        let mut trainer = Trainer::new(self.model.clone(), adapter, config)?;
        trainer.check_room(rows.saturating_mul(seq))?;
        // The last token of a row is only predicted.
        let row = |row| Example::new(self.tokens(row as u64, seq + 1), vec![true; seq + 1]);
        let batch = [Batch::new(&(0..rows).map(row).collect::<Vec<_>>())];
        self.global.say("warming up");
        let first = trainer.step(&batch)?.loss;
        let (mut speeds, mut last) = (vec![], first);
        for i in 1..=self.args.repeat {
            let begin = Instant::now();
            last = trainer.step(&batch)?.loss;
            speeds.push(per_second(rows * seq, begin.elapsed()));
            let (repeat, speed) = (self.args.repeat, speeds[speeds.len() - 1]);
            self.global.say(format!("run {i}/{repeat}: loss {last:.4}, {speed:.1} tokens/s"));
        }
        if let Some(loss) = [first, last].into_iter().find(|loss| !loss.is_finite()) {
            return Err(wrong(
                format!("the loss is {loss}: what was timed is no training"),
                "the model's weights have numbers that are not finite, or are too large",
            ));
        }
        let mut facts = Map::new();
        facts.insert("batch".into(), json!(rows));
        facts.insert("seq".into(), json!(seq));
        facts.insert("rank".into(), json!(self.args.rank));
        facts.insert("target".into(), json!(self.args.target));
        facts.insert("grad_checkpoint".into(), json!(self.args.grad_checkpoint));
        facts.insert("trainable_parameters".into(), json!(trained));
        facts.insert("first_loss".into(), json!(first));
        facts.insert("last_loss".into(), json!(last));
        let speeds = vec![("train", format!("training on {rows} × {seq} tokens"), Spread::of(speeds))];
        Ok(Report { mode: "train", speeds, facts })
    }

    /// Random tokens; each row has its own.
    fn tokens(&self, row: u64, count: usize) -> Vec<u32> {
        let mut stream = Stream::new(self.args.seed, Purpose::Sample, row);
        (0..count).map(|_| stream.below(self.model.config().vocab_size as u32)).collect()
    }
}

/// The likeliest token after `ids`, without a cache.
fn next_token(model: &dyn CausalLM, ids: &[u32]) -> Result<u32> {
    let hidden = model.hidden(ids, (1, ids.len()), &mut Pass::default())?;
    let logits = model.logits(&hidden.narrow(1, ids.len() - 1, 1)?)?.to_dtype(DType::F32)?;
    let mut unused = Stream::new(0, Purpose::Sample, 0);
    Ok(sample_token(&logits.flatten_all()?.to_vec1()?, &SamplingStrategy::Greedy, &mut unused)?)
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}
