//! The sinks that a plan asks for, and the words at the end of a run.
//!
//! What a newcomer would get wrong: with `--json` standard output carries records only, so the summary goes
//! to stderr; otherwise it is part of what the user wants to see and goes to standard output.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Context;
use jiff::tz::TimeZone;

use crate::{
    cli::plan::{Colour, Output, Plan},
    pipeline::{Ending, notice},
    sinks::{
        Sink,
        file::FileSink,
        json::JsonSink,
        stdout,
        text::{TextOptions, TextSink, terminal_size},
    },
};

/// Opens everything that records go to.
pub fn sinks(plan: &Plan, records_on_stdout: bool) -> anyhow::Result<Vec<Box<dyn Sink>>> {
    let output = &plan.output;
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if records_on_stdout {
        let stdout = stdout::open().context("standard output is not open")?;
        if output.json {
            sinks.push(Box::new(JsonSink::new(stdout)));
        } else {
            sinks.push(Box::new(TextSink::new(stdout, text_options(plan))));
        }
    }
    if let Some(path) = &output.file {
        let file = FileSink::open(path).with_context(|| format!("{} cannot be written", path.display()))?;
        sinks.push(Box::new(file));
    }
    Ok(sinks)
}

/// Writes the summary, and gives the exit code of the run.
pub fn finish(output: &Output, ending: Ending) -> anyhow::Result<ExitCode> {
    if !output.quiet {
        let text = ending.summary.to_text(&ending.health);
        if output.json {
            // Neither here nor below is anybody left to be told of a failure.
            let _ = io::stderr().write_all(text.as_bytes());
        } else {
            let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
        }
    } else {
        if ending.health.lost() != 0 {
            notice::warn(&format!("{} events or records were lost", ending.health.lost()));
        }
        if ending.health.unexplained() != 0 {
            notice::warn(&format!(
                "the kernel counted {} opens or failures that were not seen, and nothing that was lost accounts for \
                 them",
                ending.health.unexplained()
            ));
        }
    }
    if let Some(error) = ending.recording_failed {
        return Err(anyhow::Error::new(error).context("the recording is incomplete"));
    }
    match ending.source_failed {
        Some(error) => Err(error.into()),
        None if ending.spoilt => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn text_options(plan: &Plan) -> TextOptions {
    let terminal = io::stdout().is_terminal();
    let colour = match plan.output.colour {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never,
    };
    let width =
        if terminal { terminal_size().map(|(_, columns)| columns).or_else(columns_of_shell) } else { None };
    TextOptions {
        colour,
        terminal,
        width,
        zone: TimeZone::system(),
        slow_ns: plan.tail.slow_ns,
        slow_accept_ns: plan.tail.slow_accept_ns,
    }
}

fn columns_of_shell() -> Option<u16> {
    std::env::var("COLUMNS").ok()?.parse().ok()
}
