//! `-o FILE`: JSON Lines appended to a file that other programs read, rotate and fill the disk of.
//!
//! A file that we create is 0600, because records hold sequence numbers. The last line of a crash is
//! repaired at open. What a newcomer would get wrong: a batch that fails half-way leaves half a line, so the
//! file is cut back to the last whole line before anything else is written. All of that is for regular
//! files; a device or a pipe is only written to.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{Record, Sink, SinkError, json};

/// A batch of this size is written before its end.
const BUFFER_BYTES: usize = 64 << 10;

/// How far back a broken last line is looked for; our records are far shorter.
const REPAIR_BYTES: u64 = 64 << 10;

/// Every record of ours begins so; a last line that doesn't is not ours to remove.
const OUR_LINE: &[u8] = b"{\"schema\":";

/// Appends records to a file.
pub struct FileSink {
    path: PathBuf,
    file: File,
    regular: bool,
    buffer: Vec<u8>,
    records: u64,
}

impl FileSink {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (file, regular) = open(path)?;
        Ok(FileSink { path: path.to_owned(), file, regular, buffer: Vec::new(), records: 0 })
    }

    fn write_out(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.records);
        let before = if self.regular { self.file.seek(SeekFrom::End(0)).ok() } else { None };
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        result.map_err(|error| {
            if let Some(length) = before {
                // If this fails too there is nothing left to try; the next open repairs the line.
                let _ = self.file.set_len(length);
            }
            self.error(error, records)
        })
    }

    fn error(&self, error: io::Error, records: u64) -> SinkError {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return SinkError::Closed;
        }
        SinkError::Write { name: self.path.display().to_string(), error, records, spoils_run: false }
    }
}

impl Sink for FileSink {
    fn accept(&mut self, record: &Record) -> Result<(), SinkError> {
        json::write_line(record, &mut self.buffer).map_err(|error| self.error(error, 1))?;
        self.records += 1;
        if self.buffer.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.write_out()
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        self.write_out()?;
        // Should the name not open, we go on with the file that we have: no record is lost by that.
        let (file, regular) = open(&self.path).map_err(|error| self.error(error, 0))?;
        self.file = file;
        self.regular = regular;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, bool)> {
    let special = std::fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_block_device()
    });
    if special {
        return Ok((OpenOptions::new().write(true).open(path)?, false));
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let regular = file.metadata()?.is_file();
    if regular {
        repair(&mut file)?;
    }
    Ok((file, regular))
}

/// Ends the last line, or removes it when it is half a record of ours.
fn repair(file: &mut File) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(REPAIR_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(REPAIR_BYTES).read_to_end(&mut tail)?;
    let line_at = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = &tail[line_at..];
    if line.is_empty() {
        return Ok(());
    }
    let whole_line_seen = line_at != 0 || from == 0;
    let ours = line.starts_with(OUR_LINE) || OUR_LINE.starts_with(line);
    if whole_line_seen && ours && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err() {
        return file.set_len(from + line_at as u64);
    }
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::sinks::Lost;

    fn lost() -> Record {
        Record::Lost(Lost::default(), None)
    }

    const LINE: &str = "{\"schema\":1,\"kind\":\"lost\",\"total\":0,\"grown\":0,\"causes\":{}}\n";

    #[test]
    fn a_new_file_is_for_its_owner_only_and_an_old_one_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for _ in 0..2 {
            let mut sink = FileSink::open(&path).unwrap();
            sink.accept(&lost()).unwrap();
            sink.flush().unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), LINE.repeat(2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn half_a_record_of_a_crash_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, format!("{LINE}{{\"schema\":1,\"kind\":\"hand")).unwrap();
        FileSink::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), LINE);
    }

    #[test]
    fn a_line_that_is_not_ours_is_only_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "someone's note").unwrap();
        FileSink::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "someone's note\n");
    }

    #[test]
    fn after_a_rotation_the_name_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut sink = FileSink::open(&path).unwrap();
        sink.accept(&lost()).unwrap();
        fs::rename(&path, &moved).unwrap();
        sink.reopen().unwrap();
        sink.accept(&lost()).unwrap();
        sink.flush().unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), LINE);
        assert_eq!(fs::read_to_string(&path).unwrap(), LINE);
    }

    #[test]
    fn a_full_device_is_an_error_with_the_number_of_records() {
        let mut sink = FileSink::open(Path::new("/dev/full")).unwrap();
        sink.accept(&lost()).unwrap();
        sink.accept(&lost()).unwrap();
        assert!(matches!(sink.flush(), Err(SinkError::Write { records: 2, .. })));
        assert!(sink.flush().is_ok(), "what failed is counted once");
    }
}
