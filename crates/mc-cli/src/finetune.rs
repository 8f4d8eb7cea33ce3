//! `metal-candle finetune`: from records to an adapter, and what changed.

mod output;
mod samples;
mod settings;
mod watch;

use crate::{
    embedded,
    failure::wrong,
    global::Global,
    plot, report,
    source::{self, Source},
};
use anyhow::Result;
use metal_candle::{
    checkpoint::{self, write_atomic},
    lora::LoRAAdapter,
    models::{Adapter, Model},
    training::{DataFiles, Dataset, DatasetOptions, RunFiles, Trainer, TrainingConfig, TrainingMetrics, evaluate},
};
use output::Output;
use samples::{Asker, Request};
use serde_json::{Value, json};
use settings::Settings;
pub(crate) use settings::targets;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// Train a LoRA adapter on your records
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Without --model and --data it trains the model inside this binary on the requests inside it: under a \
    minute, no download.\n\nRecords are JSON objects, one per line, all of one kind:\n  \
    {\"text\": \"…\"}\n  {\"prompt\": \"…\", \"completion\": \"…\"}\n  {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}\n\n\
    The output directory is an adapter that HF PEFT reads, too. Its run/ holds metrics, a picture of the loss, and the \
    state that --resume goes on from. Ctrl-C and SIGTERM end its training after the step it is in, with the state saved; Ctrl-C again ends it at once, with exit status 130.\n\n\
    Example:\n  metal-candle finetune --model Qwen/Qwen2.5-0.5B-Instruct \\\n    --data data/ --output adapters/mine --mask-prompt"
)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// TOML file with options as keys, such as `batch-size = 8`; the command line overrides it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Go on with the run in --output
    #[arg(long)]
    resume: bool,
    /// Say what would be trained, and stop
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<()> {
    let mut settings = args.settings;
    if let Some(path) = &args.config {
        settings = settings.or(Settings::from_file(path)?);
    }
    settings.check_start()?;
    if args.resume && settings.output.is_none() {
        return Err(wrong("--resume does not say which run", "name its directory with --output"));
    }
    let shows_itself = settings.data.is_none();
    if shows_itself {
        if !embedded::is_meant(settings.model.as_deref()) {
            return Err(wrong(
                "no --data to train on",
                "pass a directory with train.jsonl, or one file of records, with --data",
            ));
        }
        let preset = Settings::embedded(&settings);
        settings = settings.or(preset);
    }
    settings.check()?;
    let mut source = Source::open(global, settings.model.as_deref())?;
    let output = Output::new(settings.output.clone(), source.name(), args.resume)?;
    // A template that writes the date makes the same texts on another day, too.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    let started = if args.resume { RunFiles::new(output.dir()).started()?.unwrap_or(now) } else { now };
    source.chat_template = source.chat_template.map(|template| template.at(started));
    let data = Data::load(global, &settings, &source)?;
    let model = source.load(global)?;
    let adapter = match &settings.init_adapter {
        Some(dir) => source::adapter(&*model, dir)?,
        None => LoRAAdapter::new(&*model, settings.adapter()?)?,
    }
    .with_base_model(source.name());
    let mut config = TrainingConfig { started: Some(started), ..settings.training(data.train.len(), &output.dir()) };
    config.check()?;
    // Held until the end; until the trainer has checked data and memory, nothing but the lock is written.
    let claimed = if args.dry_run { None } else { Some(output.claim()?) };
    let output = claimed.as_ref().map_or_else(|| output.dir(), |(dir, _)| dir.clone());
    config.output_dir = Some(output.clone());
    describe(global, &source, &model, &adapter, &config, &data)?;
    let mut trainer = Trainer::new(model.clone(), adapter, config)?;
    if args.resume {
        trainer.resume()?;
    }
    trainer.check(&data.train)?;
    if args.resume {
        global.say(format!("going on after step {}", trainer.steps()));
        if trainer.steps() >= trainer.config().total_steps(data.train.len()) {
            global.say("no step is left to do: ask for more with --steps or --epochs");
        }
    }
    if args.dry_run {
        global.say("a dry run: nothing is trained or written");
        return Ok(());
    }
    // What the run starts from: a fresh adapter changes nothing.
    let goes_on = args.resume || settings.init_adapter.is_some();
    let start: Option<Arc<dyn Adapter>> =
        if goes_on { Some(Arc::new(trainer.lora_adapter().freeze(&*model)?)) } else { None };
    let before = Asker::new(&source, &model, start.clone(), data.longest_answer)?;
    let first = data.requests.first();
    let sample_before = first.map(|request| before.sample(global, request)).transpose()?.flatten();
    let exact_before = if shows_itself {
        let untrained = if goes_on { "" } else { "untrained " };
        global.say(format!("asking the {untrained}model the {} held-out requests", data.requests.len()));
        Some(before.exact(&data.requests)?)
    } else {
        None
    };
    let loss_before = data.valid.as_ref().map(|valid| evaluate(&*model, start.as_deref(), valid, 8)).transpose()?;
    if let Some(metrics) = &loss_before {
        global.say(format!("before: held-out loss {:.4}, perplexity {:.2}", metrics.loss, metrics.perplexity));
    }

    for observer in watch::observers(global) {
        trainer = trainer.with_observer(observer);
    }
    let steps_before = trainer.steps();
    let metrics = trainer.train_with_eval(&data.train, data.valid.as_ref())?;
    if !metrics.stopped {
        watch::over();
    }

    // From the disk, so that what is shown is what was saved.
    let saved: Arc<dyn Adapter> = Arc::new(source::adapter(&*model, &output)?.freeze(&*model)?);
    let after = Asker::new(&source, &model, Some(saved), data.longest_answer)?;
    let outcome = Outcome {
        output: &output,
        // Who stopped the run does not want to wait.
        exact: exact_before
            .filter(|_| !metrics.stopped)
            .map(|n| after.exact(&data.requests).map(|m| (n, m, data.requests.len())))
            .transpose()?,
        loss_before: loss_before.map(|m| m.loss),
        sample: match (first, sample_before) {
            (Some(request), Some(before)) if !metrics.stopped => {
                after.sample(global, request)?.map(|after| (request, before, after))
            }
            _ => None,
        },
        metrics,
        steps_before,
    };
    draw(&output)?;
    outcome.tell(global, &settings)
}

/// Records to train on and to hold out, and requests to ask before and after.
struct Data {
    train: Dataset,
    valid: Option<Dataset>,
    requests: Vec<Request>,
    longest_answer: usize,
}

impl Data {
    fn load(global: &Global, settings: &Settings, source: &Source) -> Result<Self> {
        let options = source.dataset_options(settings.max_seq_len, settings.mask_prompt.unwrap_or(false))?;
        let tokenizer = &source.tokenizer;
        let (train, valid, asked, first) = match &settings.data {
            None => (
                Dataset::read("embedded train.jsonl", embedded::TRAIN.as_bytes(), tokenizer, &options)?,
                Some(Dataset::read("embedded valid.jsonl", embedded::VALID.as_bytes(), tokenizer, &options)?),
                embedded::VALID.to_string(),
                String::new(),
            ),
            Some(path) => {
                let files = DataFiles::find(path)?;
                let (train, first) = read(&files.train, source, &options)?;
                match &files.valid {
                    Some(file) => {
                        let (valid, asked) = read(file, source, &options)?;
                        (train, Some(valid), asked, first)
                    }
                    None => (train, None, first.clone(), first),
                }
            }
        };
        if valid.is_none() && settings.eval_every.is_some() {
            global.say("--eval-every does nothing: there is no valid.jsonl beside the training data");
        }
        if settings.mask_prompt == Some(true) && is_text(&first) {
            global.say("--mask-prompt does nothing: a record with `text` has no prompt");
        }
        report::dataset(global, "train", train.report());
        if let Some(valid) = &valid {
            report::dataset(global, "held out", valid.report());
        }
        let requests = asked.lines().filter_map(Request::of_record).collect();
        Ok(Self { train, valid, requests, longest_answer: 64 })
    }
}

/// Whether a record is a text, which is no prompt.
fn is_text(record: &str) -> bool {
    serde_json::from_str::<Value>(record).is_ok_and(|record| record.get("text").is_some())
}

/// A file of records, and the first of them. It is read once, for it may be a pipe.
fn read(path: &Path, source: &Source, options: &DatasetOptions) -> Result<(Dataset, String)> {
    let fail = |source| checkpoint::Error::Io { path: path.into(), source };
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(fail)?);
    let mut head = vec![];
    while head.trim_ascii().is_empty() && (&mut file).take(64 << 20).read_until(b'\n', &mut head).map_err(fail)? > 0 {}
    let first = String::from_utf8_lossy(&head).trim_start_matches('\u{feff}').trim().to_string();
    let name = path.display().to_string();
    let data = Dataset::read(&name, head.as_slice().chain(file), &source.tokenizer, options)?;
    data.check_tokens(&name, source.config.vocab_size)?;
    Ok((data, first))
}

/// What will be trained, before it is.
fn describe(
    global: &Global,
    source: &Source,
    model: &Model,
    adapter: &LoRAAdapter,
    config: &TrainingConfig,
    data: &Data,
) -> Result<()> {
    let steps = config.total_steps(data.train.len());
    let (adapted, sites) = (adapter.layers().count(), model.sites().len());
    let settings = adapter.config();
    let computation = source::computation(model.device(), model.computation());
    global.say(format!("model: {} ({}) on {computation}", source.name(), model.config().model_type));
    global.say(format!(
        "training {} parameters, rank {} in {adapted} of {sites} projections",
        report::count(adapter.num_parameters() as u64),
        settings.rank,
    ));
    let batches = if config.grad_accum == 1 { String::new() } else { format!("{} × ", config.grad_accum) };
    global.say(format!(
        "{} of {batches}{}, learning rate up to {:e}, into {}",
        report::counted(steps, "step"),
        report::counted(config.batch_size as u64, "record"),
        config.lr_scheduler.peak(),
        config.output_dir.as_deref().unwrap_or(Path::new("")).display()
    ));
    if global.json {
        report::json(&json!({
            "event": "plan", "model": source.name(), "steps": steps, "trainable_parameters": adapter.num_parameters(),
            "adapted_projections": adapted, "rank": settings.rank, "alpha": settings.alpha,
            "batch_size": config.batch_size, "grad_accum": config.grad_accum, "lr": config.lr_scheduler.peak(),
            "train": data.train.report(), "valid": data.valid.as_ref().map(Dataset::report), "output": config.output_dir,
        }))?;
    }
    Ok(())
}

/// A picture of the loss from the run's metrics, those of its earlier parts included.
fn draw(output: &Path) -> Result<()> {
    let (mut train, mut valid) = (vec![], vec![]);
    for event in events(output) {
        let number = |key: &str| event.get(key).and_then(Value::as_f64);
        if let (Some(step), Some(loss)) = (number("step"), number("loss")) {
            match event.get("event").and_then(Value::as_str) {
                Some("step") => train.push((step as u64, loss)),
                Some("eval") => valid.push((step as u64, loss)),
                _ => {}
            }
        }
    }
    let picture = plot::svg(&train, &valid);
    write_atomic(output.join("run").join("loss.svg"), |file| file.write_all(picture.as_bytes()))?;
    Ok(())
}

fn events(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(RunFiles::new(output).metrics()).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What came of a run.
struct Outcome<'a> {
    output: &'a Path,
    metrics: TrainingMetrics,
    /// Steps that were done when the run was resumed.
    steps_before: u64,
    /// Requests answered exactly before and after, and how many there are.
    exact: Option<(usize, usize, usize)>,
    loss_before: Option<f64>,
    sample: Option<(&'a Request, String, String)>,
}

impl Outcome<'_> {
    fn tell(&self, global: &Global, settings: &Settings) -> Result<()> {
        if global.json {
            if let Some((before, after, of)) = self.exact {
                report::json(&json!({"event": "exact", "before": before, "after": after, "of": of}))?;
            }
            if let Some((request, before, after)) = &self.sample {
                report::json(&json!({"event": "sample", "prompt": request.text(), "before": before, "after": after}))?;
            }
        }
        let m = &self.metrics;
        let losses: Vec<f64> =
            events(self.output).iter().filter(|e| e["event"] == "step").filter_map(|e| e["loss"].as_f64()).collect();
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            global.say(format!("loss {first:.3} {} {last:.3}", plot::sparkline(&losses, 40)));
        }
        let memory = m.peak_memory_bytes.map(|b| format!(", peak memory {}", report::bytes(b))).unwrap_or_default();
        // A run that had no step left to do has no speed.
        if m.tokens > 0 {
            global.say(format!(
                "{} in {:.1} s, {} tokens/s{memory}",
                report::counted(m.steps - self.steps_before, "step"),
                m.seconds,
                report::count(m.tokens_per_second as u64),
            ));
        }
        if m.stopped {
            let dir = quoted(&self.output.display().to_string());
            global.say(format!("stopped early; the same options with --output {dir} --resume go on from here"));
        }
        if m.skipped > 0 {
            let steps = report::counted(m.skipped, "step");
            global.say(format!("{steps} skipped: the loss or its gradient was not finite"));
        }
        if let (Some(before), Some(eval)) = (self.loss_before, &m.eval) {
            global.say(format!("held-out loss {before:.4} before, {:.4} after", eval.loss));
        }
        if let Some((before, after, of)) = self.exact {
            global.say(format!("held-out requests answered exactly: {before} of {of} before, {after} of {of} after"));
        }
        if let Some((request, before, after)) = &self.sample {
            global.say(format!("  request  {}", shown(request.text())));
            global.say(format!("  before   {}", shown(before)));
            global.say(format!("  after    {}", shown(after)));
        }
        let display = self.output.display();
        global.say(format!("adapter: {display}  (loss over steps: {display}/run/loss.svg)"));
        let model = settings.model.as_ref().map(|m| format!(" --model {}", quoted(m))).unwrap_or_default();
        let request = self.sample.as_ref().map(|(request, ..)| *request);
        let chat = if request.is_some_and(Request::is_chat) { " --chat" } else { "" };
        let (dir, prompt) = (quoted(&display.to_string()), quoted(request.map_or("your text", Request::text)));
        global.say(format!("next: {} generate{model} --adapter {dir}{chat} --prompt {prompt}", program()));
        Ok(())
    }
}

/// This program as it was called, so that the next call is of the same build.
fn program() -> String {
    let called = std::env::args_os().next().and_then(|name| name.into_string().ok());
    let called = called.unwrap_or_else(|| "metal-candle".into());
    let here = std::env::current_dir().unwrap_or_default();
    quoted(&Path::new(&called).strip_prefix(here).map_or(called.clone(), |inside| format!("./{}", inside.display())))
}

/// A text on one line of a terminal, cut where it is long.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = report::escaped(&line);
    if line.chars().count() > 66 { line.chars().take(65).chain(['…']).collect() } else { line }
}

/// A word of a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("adapters/shell-2"), "adapters/shell-2");
        assert_eq!(quoted("it's all"), r"'it'\''s all'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_shown_text_is_one_short_line() {
        assert_eq!(shown(" a\n  b\t\u{1b}[1m"), r"a b \u{1b}[1m");
        assert_eq!(shown(&"x".repeat(200)).chars().count(), 66);
    }
}
