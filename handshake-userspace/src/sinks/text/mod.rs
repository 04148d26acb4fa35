//! The live tail: one line per handshake, aligned, coloured by meaning.
//!
//! It decides what a person sees of a record; `layout` how wide each column is, `words` how outcomes and
//! phases read, `duration` how times read. What a newcomer would get wrong: a column that a value does not
//! fit grows and stays so, because a tail whose columns jump back and forth cannot be read.

pub mod duration;
pub mod layout;
pub mod words;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use anstyle::{AnsiColor, Effects, Style};
use jiff::{Timestamp, tz::TimeZone};

use self::{
    duration::human,
    layout::{Column, Density, Layout},
};
use super::{Lost, Record, Sink, SinkError, WallTime, json};
use crate::model::{
    handshake::{Accept, Handshake},
    outcome::{AcceptOutcome, Outcome},
    process::Process,
};

const GOOD: Style = AnsiColor::Green.on_default();
const SLOW: Style = AnsiColor::Yellow.on_default();
const FAILED: Style = AnsiColor::Red.on_default();
const DIM: Style = Style::new().effects(Effects::DIMMED);
const PLAIN: Style = Style::new();
const HEADER: Style = Style::new().effects(Effects::BOLD);

/// How to show records.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Colours and other escapes may be written.
    pub colour: bool,
    /// The output is a terminal, of which the size is asked again and again.
    pub terminal: bool,
    /// Columns to fit, where that is known; without it lines are as long as they get.
    pub width: Option<u16>,
    /// The zone of the time of day.
    pub zone: TimeZone,
    /// From this latency on a handshake is marked as slow.
    pub slow_ns: Option<u64>,
    /// From this wait on an accept is marked as slow.
    pub slow_accept_ns: Option<u64>,
}

/// Writes the tail.
pub struct TextSink<W> {
    out: W,
    options: TextOptions,
    layout: Layout,
    buffer: String,
    lines_since_header: Option<u16>,
}

/// A batch of this size is written before its end.
const BUFFER_BYTES: usize = 64 << 10;

impl<W: Write + Send> TextSink<W> {
    /// Writes to `out`, which needs no buffer of its own.
    pub fn new(out: W, options: TextOptions) -> Self {
        let layout = Layout::new(Density::for_width(options.width));
        TextSink { out, options, layout, buffer: String::new(), lines_since_header: None }
    }

    fn handshake(&mut self, handshake: &Handshake, time: WallTime) {
        let slow = reaches(handshake.latency_ns, self.options.slow_ns)
            || reaches(handshake.phases.accept_ns, self.options.slow_accept_ns);
        let style = match handshake.outcome {
            Outcome::Established if slow || words::retransmitted(handshake) => SLOW,
            Outcome::Established => GOOD,
            Outcome::Cancelled | Outcome::Incomplete => SLOW,
            _ => FAILED,
        };
        let density = self.layout.density();
        let (pid, command) = process_cells(handshake.process.as_ref());
        let row = [
            (Column::Time, self.time(time), DIM),
            (Column::Role, json::words::role(handshake.role).to_owned(), PLAIN),
            (Column::Pid, pid, PLAIN),
            (Column::Command, command, PLAIN),
            (Column::Local, words::end(handshake.local), PLAIN),
            (Column::Remote, words::end(handshake.remote), PLAIN),
            (Column::Latency, handshake.latency_ns.map_or_else(unknown, human), style),
            (Column::Phases, words::phases(&handshake.phases, density), DIM),
            (
                Column::Retrans,
                words::retransmits(&handshake.retransmits),
                style_if(words::retransmitted(handshake), SLOW),
            ),
            (Column::Outcome, words::outcome(handshake, density), style),
        ];
        self.row(&row);
    }

    fn accept(&mut self, accept: &Accept, time: WallTime) {
        let slow = reaches(accept.wait_ns, self.options.slow_accept_ns);
        let style = match accept.outcome {
            AcceptOutcome::Accepted if !slow => GOOD,
            AcceptOutcome::Accepted | AcceptOutcome::ResetInQueue | AcceptOutcome::Incomplete => SLOW,
            AcceptOutcome::NeverAccepted => FAILED,
        };
        let (pid, command) = process_cells(accept.process.as_ref());
        let density = self.layout.density();
        let wait = accept.wait_ns.map(|wait_ns| words::accept_wait(wait_ns, accept.call_ns, density));
        let narrow = self.layout.density() == Density::Narrow;
        let row = [
            (Column::Time, self.time(time), DIM),
            (Column::Role, "accept".to_owned(), PLAIN),
            (Column::Pid, pid, PLAIN),
            (Column::Command, command, PLAIN),
            (Column::Local, words::end(accept.local), PLAIN),
            (Column::Remote, words::end(accept.remote), PLAIN),
            // A wait for accept() is no latency of the handshake; a narrow line has no other place for it, and the
            // role says what it is.
            (Column::Latency, wait.clone().filter(|_| narrow).unwrap_or_else(unknown), style),
            (Column::Phases, wait.unwrap_or_else(unknown), style),
            (Column::Retrans, unknown(), PLAIN),
            (Column::Outcome, words::accept_outcome(accept.outcome).to_owned(), style),
        ];
        self.row(&row);
    }

    fn lost(&mut self, lost: &Lost, time: WallTime) {
        let causes: Vec<String> =
            lost.causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        let line = format!(
            "{} LOST {} more, {} in all: {}",
            self.time(time),
            lost.grown,
            lost.total,
            causes.join(", ")
        );
        self.styled(&line, FAILED);
        self.end_line();
    }

    fn row(&mut self, row: &[(Column, String, Style)]) {
        for (column, text, _) in row {
            self.layout.widen(*column, text);
        }
        self.header_if_due();
        let mut line = Vec::with_capacity(row.len());
        for (column, text, style) in row {
            if let Some(cell) = self.layout.cell(*column, text) {
                line.push((cell, *style));
            }
        }
        self.cells(line);
    }

    fn cells(&mut self, cells: Vec<(String, Style)>) {
        let last = cells.len().saturating_sub(1);
        for (at, (cell, style)) in cells.into_iter().enumerate() {
            // The colour ends before the padding and nothing trails on the last cell.
            let text = cell.trim_end();
            let blank_before = text.len() - text.trim_start().len();
            self.buffer.push_str(&text[..blank_before]);
            self.styled(&text[blank_before..], style);
            if at != last {
                self.buffer.push_str(&cell[text.len()..]);
                self.buffer.push(' ');
            }
        }
        self.end_line();
    }

    fn styled(&mut self, text: &str, style: Style) {
        if self.options.colour && !text.is_empty() && style != PLAIN {
            self.buffer.push_str(&format!("{style}{text}{style:#}"));
        } else {
            self.buffer.push_str(text);
        }
    }

    fn end_line(&mut self) {
        while self.buffer.ends_with(' ') {
            self.buffer.pop();
        }
        self.buffer.push('\n');
        self.lines_since_header = self.lines_since_header.map(|lines| lines.saturating_add(1));
    }

    /// The header once; on a terminal again when the last one has scrolled away, and when the width changed.
    fn header_if_due(&mut self) {
        let mut due = self.lines_since_header.is_none();
        if self.options.terminal {
            let size = terminal_size();
            if let Some((rows, columns)) = size {
                due |= self.lines_since_header.is_some_and(|lines| rows > 4 && lines >= rows - 2);
                let density = Density::for_width(Some(columns));
                if density != self.layout.density() {
                    self.layout = Layout::new(density);
                    due = true;
                }
            }
        }
        if due {
            let header = self.layout.header().into_iter().map(|cell| (cell, HEADER)).collect();
            self.cells(header);
            self.lines_since_header = Some(0);
        }
    }

    fn time(&self, time: WallTime) -> String {
        let Some(time) = time.and_then(|time| Timestamp::from_nanosecond(i128::from(time)).ok()) else {
            return unknown();
        };
        let format = match self.layout.density() {
            Density::Narrow => "%H:%M:%S",
            Density::Usual => "%H:%M:%S.%3f",
            Density::Wide => "%H:%M:%S.%6f",
        };
        time.to_zoned(self.options.zone.clone()).strftime(format).to_string()
    }

    fn write_out(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let lines = self.buffer.lines().count() as u64;
        let result = self.out.write_all(self.buffer.as_bytes()).and_then(|()| self.out.flush());
        self.buffer.clear();
        result.map_err(|error| super::stdout::sink_error(error, lines))
    }
}

impl<W: Write + Send> Sink for TextSink<W> {
    fn accept(&mut self, record: &Record) -> Result<(), SinkError> {
        match record {
            Record::Handshake(handshake, time) => self.handshake(handshake, *time),
            Record::Accept(accept, time) => TextSink::accept(self, accept, *time),
            Record::Lost(lost, time) => self.lost(lost, *time),
            // The summary at the end says it in words.
            Record::Health(..) => {}
        }
        if self.buffer.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.write_out()
    }
}

/// Rows and columns of the terminal on standard output.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col != 0).then_some((size.ws_row, size.ws_col))
}

fn process_cells(process: Option<&Process>) -> (String, String) {
    match process {
        Some(process) => (process.pid.to_string(), process.comm.as_str().to_owned()),
        None => (unknown(), unknown()),
    }
}

fn unknown() -> String {
    "-".to_owned()
}

fn reaches(value: Option<u64>, limit: Option<u64>) -> bool {
    matches!((value, limit), (Some(value), Some(limit)) if value >= limit)
}

fn style_if(condition: bool, style: Style) -> Style {
    if condition { style } else { DIM }
}
