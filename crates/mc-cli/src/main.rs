//! The `metal-candle` command line: the only place that prints, draws bars and parses arguments.
//!
//! Data goes to stdout, everything else to stderr. Exit 0; 2 for a wrong call or input; 1 for a failure.

mod bench;
mod embed;
mod embedded;
mod eval;
mod failure;
mod finetune;
mod generate;
mod global;
mod index;
mod indexed;
mod inspect;
mod lines;
mod memory;
mod npy;
mod plot;
mod report;
mod search;
mod source;

use clap::{Parser, Subcommand};
use std::{process::ExitCode, time::Instant};

/// Fine-tune and run language models on your own machine.
#[derive(Parser)]
#[command(name = "metal-candle", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Start here:\n  metal-candle finetune              \
    fine-tunes the model inside this binary, no download\n  \
    metal-candle generate --prompt 'List all files, hidden ones too =>'\n\nErrors are one line and a hint. Exit status: 0, \
    2 for a wrong call or input, 1 for a failure.")]
struct Cli {
    #[command(flatten)]
    global: global::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Finetune(Box<finetune::Args>),
    Generate(generate::Args),
    Eval(eval::Args),
    Embed(embed::Args),
    Index(index::Args),
    Search(search::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    // SAFETY: the first statement of the process; no other thread runs.
    #[allow(unsafe_code)]
    unsafe {
        metal_candle::backend::let_candle_wait_asleep();
    }
    let start = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::wrong_call(&error),
    };
    let global = cli.global;
    global.start();
    match &cli.command {
        // They run long enough for large pages to pay.
        Command::Finetune(_) | Command::Eval(_) => memory::keep_what_is_freed(),
        Command::Bench(args) if !args.embeds() => memory::keep_what_is_freed(),
        Command::Embed(_) | Command::Index(_) | Command::Search(_) | Command::Bench(_) => {
            memory::give_back_soon();
            memory::small_pages();
        }
        Command::Generate(_) | Command::Inspect(_) => {
            memory::keep_what_is_freed();
            memory::small_pages();
        }
    }
    let result = match cli.command {
        Command::Finetune(args) => finetune::run(&global, *args),
        Command::Generate(args) => generate::run(&global, args),
        Command::Eval(args) => eval::run(&global, &args),
        Command::Embed(args) => embed::run(&global, &args),
        Command::Index(args) => index::run(&global, &args),
        Command::Search(args) => search::run(&global, &args),
        Command::Inspect(args) => inspect::run(&global, &args),
        Command::Bench(args) => bench::run(&global, &args, start),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
