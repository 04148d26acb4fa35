//! The columns of the tail: which there are at a given width, and how wide each is.
//!
//! Three densities: wide and piped output names every phase, the usual 120 columns name the longest phase
//! and sum up the rest, a narrow terminal drops the local end and the phases. What a newcomer would get
//! wrong: widths are in characters shown, not in bytes (`µ` is two bytes).

/// The columns, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Local time of day at which it began.
    Time,
    /// Which side.
    Role,
    /// Process id.
    Pid,
    /// Command name.
    Command,
    /// Our end.
    Local,
    /// The other end.
    Remote,
    /// SYN to ESTABLISHED.
    Latency,
    /// Where the time went.
    Phases,
    /// What was sent again.
    Retrans,
    /// How it ended; the last one, of free length.
    Outcome,
}

impl Column {
    const ALL: [Column; 10] = [
        Column::Time,
        Column::Role,
        Column::Pid,
        Column::Command,
        Column::Local,
        Column::Remote,
        Column::Latency,
        Column::Phases,
        Column::Retrans,
        Column::Outcome,
    ];

    fn title(self) -> &'static str {
        match self {
            Column::Time => "TIME",
            Column::Role => "ROLE",
            Column::Pid => "PID",
            Column::Command => "COMMAND",
            Column::Local => "LOCAL",
            Column::Remote => "REMOTE",
            Column::Latency => "LATENCY",
            Column::Phases => "PHASES",
            Column::Retrans => "RETRANS",
            Column::Outcome => "OUTCOME",
        }
    }

    fn right_aligned(self) -> bool {
        matches!(self, Column::Pid | Column::Latency)
    }
}

/// How much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Density {
    /// Below 100 columns.
    Narrow,
    /// The usual terminal.
    Usual,
    /// 170 columns and more, and wherever the width is unknown.
    Wide,
}

impl Density {
    /// The one for a terminal of this width; output that is no terminal has no width.
    pub fn for_width(columns: Option<u16>) -> Self {
        match columns {
            Some(0..100) => Density::Narrow,
            Some(100..170) => Density::Usual,
            Some(170..) | None => Density::Wide,
        }
    }
}

/// The widths of the columns at this moment.
#[derive(Clone, Debug)]
pub struct Layout {
    density: Density,
    widths: [usize; Column::ALL.len()],
}

impl Layout {
    /// The narrowest widths of a density: in the usual case, IPv4 with long ports and short addresses, the
    /// sum with the blanks between them is 120 or less at [`Density::Usual`].
    pub fn new(density: Density) -> Self {
        let widths = match density {
            Density::Narrow => [8, 6, 5, 7, 0, 15, 7, 0, 0, 0],
            Density::Usual => [12, 6, 5, 7, 15, 15, 7, 20, 7, 0],
            Density::Wide => [15, 6, 7, 8, 15, 15, 7, 40, 7, 0],
        };
        Layout { density, widths }
    }

    /// Which density it has.
    pub fn density(&self) -> Density {
        self.density
    }

    /// Makes room for a value. The last column is of free length.
    pub fn widen(&mut self, column: Column, text: &str) {
        if self.shows(column) && column != Column::Outcome {
            let width = &mut self.widths[column as usize];
            *width = (*width).max(text.chars().count());
        }
    }

    /// The text at its column's width; `None` when the density has no such column.
    pub fn cell(&self, column: Column, text: &str) -> Option<String> {
        if !self.shows(column) {
            return None;
        }
        let width = self.widths[column as usize];
        Some(if column.right_aligned() { format!("{text:>width$}") } else { format!("{text:<width$}") })
    }

    /// The titles at the widths of their columns.
    pub fn header(&self) -> Vec<String> {
        Column::ALL.iter().filter_map(|column| self.cell(*column, column.title())).collect()
    }

    fn shows(&self, column: Column) -> bool {
        self.density != Density::Narrow || !matches!(column, Column::Local | Column::Phases | Column::Retrans)
    }
}
