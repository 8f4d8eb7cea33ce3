//! Options that every command has, and what they set up.

use crate::{failure::wrong, report};
use anyhow::Result;
use clap::Args;
use metal_candle::prelude::*;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Options of every command.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// Where to compute: auto, cpu, metal[:i], cuda[:i]
    #[arg(long, global = true, default_value = "auto", help_heading = "Global options")]
    pub(crate) device: String,
    /// Dtype of the model's matrices; auto keeps the file's. On the CPU f32 computes everything in f32; with bf16 matrices products round
    /// their inputs where the CPU is faster so: to bf16, or in encoders to f16 or 13-bit integers
    #[arg(long, global = true, default_value = "auto", value_parser = ["auto", "f32", "f16", "bf16"], help_heading = "Global options")]
    pub(crate) dtype: String,
    /// Threads on the CPU [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Global options")]
    pub(crate) threads: Option<u16>,
    /// JSON lines on stdout, for scripts
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Nothing on stderr but errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// What happens inside, on stderr; twice for more. METAL_CANDLE_LOG=mc_train=debug chooses what
    #[arg(short, long, global = true, conflicts_with = "quiet", action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// Sets up threads and diagnostics, once per process.
    pub(crate) fn start(&self) {
        /// Candle walks its graph by recursion, on a thread of the pool; this is what a main thread has.
        const STACK: usize = 8 << 20;
        // No number of threads is all cores. Fails only if a pool exists already, and this is the first thing the
        // process does.
        let threads = self.threads.map_or(0, usize::from);
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build_global();
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            _ => "debug",
        };
        let asked = std::env::var_os("METAL_CANDLE_LOG").filter(|_| !self.quiet);
        let filter = asked.map_or(Ok(EnvFilter::new(level)), |asked| {
            let text = asked.to_str().ok_or("it is not UTF-8")?;
            EnvFilter::try_new(text).map_err(|error| error.to_string())
        });
        let (filter, wrong) = filter.map_or_else(|wrong| (EnvFilter::new(level), Some(wrong)), |filter| (filter, None));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
        if let Some(wrong) = wrong {
            tracing::warn!("METAL_CANDLE_LOG is left out: {wrong}; it looks like mc_train=debug,mc_models=info");
        }
    }

    pub(crate) fn device(&self) -> Result<Device> {
        Device::parse(&self.device).map_err(|e| {
            let what = e.to_string();
            let hint = if what.contains("built without") {
                "build with the feature metal or cuda, or use --device cpu"
            } else {
                "--device auto takes what there is, --device cpu is always there"
            };
            wrong(what, hint)
        })
    }

    pub(crate) fn dtype(&self) -> Option<DType> {
        match self.dtype.as_str() {
            "f32" => Some(DType::F32),
            "f16" => Some(DType::F16),
            "bf16" => Some(DType::BF16),
            _ => None,
        }
    }

    /// A loader with the device and dtype asked for.
    pub(crate) fn loader(&self) -> Result<ModelLoader> {
        let loader = ModelLoader::new().with_device(self.device()?);
        Ok(match self.dtype() {
            Some(dtype) => loader.with_dtype(dtype),
            None => loader,
        })
    }

    /// Whether a person watches: then bars are drawn.
    pub(crate) fn bars(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// A line for the person, not for a script.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            report::to_stderr(&report::escaped(line.as_ref()));
        }
    }
}
