//! Cuts a JSON list or JSON lines into rows while reading, so that neither a large file nor a hostile row is ever held
//! whole. Does not look inside a row.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use scout_core::ByteCount;

use crate::error::{DataError, Result};
use crate::row_problem::{Place, RowProblem};

/// One row's text and where it stands.
pub(crate) struct Row<'a> {
    pub(crate) text: &'a str,
    pub(crate) number: u64,
    pub(crate) line: u64,
}

/// Rows of one file, in order.
pub(crate) struct RowReader<R> {
    input: R,
    path: PathBuf,
    limit: u64,
    layout: Layout,
    buffer: Vec<u8>,
    /// Rows handed out so far.
    rows: u64,
    /// The line the next unread byte stands on.
    line: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Unknown,
    /// One JSON value a line; empty lines are skipped.
    Lines,
    /// One JSON list; the rows are its items.
    List,
    /// The list's closing bracket has been read.
    Ended,
}

/// What ended an item of a list.
enum ItemEnd {
    Comma,
    Bracket,
    EndOfFile,
}

impl RowReader<BufReader<File>> {
    pub(crate) fn open(path: &Path, limit: ByteCount) -> Result<Self> {
        let read = |cause| DataError::Read { path: path.to_path_buf(), cause };
        // Opening a pipe would wait for a writer for ever, hence the question first.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(DataError::File { path: path.to_path_buf(), problem: "is not a regular file".to_string() });
        }
        Ok(RowReader::new(BufReader::with_capacity(1 << 16, File::open(path).map_err(read)?), path, limit))
    }
}

impl<R: BufRead> RowReader<R> {
    pub(crate) fn new(input: R, path: &Path, limit: ByteCount) -> RowReader<R> {
        let buffer = Vec::new();
        RowReader { input, path: path.to_path_buf(), limit: limit.0, layout: Layout::Unknown, buffer, rows: 0, line: 1 }
    }

    /// The next row, `None` after the last. The layout is told from the first byte that is not a space. After an error
    /// there is a next row unless the problem ends reading.
    pub(crate) fn next_row(&mut self) -> Result<Option<Row<'_>>> {
        if self.layout == Layout::Unknown {
            self.find_layout()?;
        }
        let found = match self.layout {
            Layout::Lines => self.read_line()?,
            Layout::List => self.read_item()?,
            Layout::Ended | Layout::Unknown => None,
        };
        let Some(line) = found else { return Ok(None) };
        self.rows += 1;
        let (number, problem) = (self.rows, self.text_problem());
        if let Some(problem) = problem {
            return Err(self.error_at(number, line, None, problem));
        }
        let text = std::str::from_utf8(&self.buffer).expect("checked by text_problem").trim();
        Ok(Some(Row { text, number, line }))
    }

    fn find_layout(&mut self) -> Result<()> {
        let start = self.input.fill_buf().map_err(|cause| read_error(&self.path, cause))?;
        if start.starts_with(b"\xef\xbb\xbf") {
            self.input.consume(3);
        }
        let first = self.skip_spaces()?;
        self.layout = if first == Some(b'[') { Layout::List } else { Layout::Lines };
        if self.layout == Layout::List {
            self.input.consume(1);
            if self.skip_spaces()? == Some(b']') {
                self.input.consume(1);
                self.end_of_list()?;
            }
        }
        Ok(())
    }

    /// The first byte that is not JSON's white space; it stays unread.
    fn skip_spaces(&mut self) -> Result<Option<u8>> {
        loop {
            let available = self.input.fill_buf().map_err(|cause| read_error(&self.path, cause))?;
            let Some(&byte) = available.first() else { return Ok(None) };
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.input.consume(1);
        }
    }

    /// Reads the next line that is not empty into the buffer and returns its number.
    fn read_line(&mut self) -> Result<Option<u64>> {
        if self.skip_spaces()?.is_none() {
            return Ok(None);
        }
        self.buffer.clear();
        let line = self.line;
        loop {
            let available = self.input.fill_buf().map_err(|cause| read_error(&self.path, cause))?;
            let end = available.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(available.len());
            self.buffer.extend_from_slice(&available[..taken]);
            let (at_end_of_file, at_newline) = (available.is_empty(), end.is_some());
            self.input.consume(taken + usize::from(at_newline));
            self.check_length(line)?;
            if at_newline || at_end_of_file {
                self.line += u64::from(at_newline);
                return Ok(Some(line));
            }
        }
    }

    /// Reads the next item of the list into the buffer and returns the line it begins on.
    fn read_item(&mut self) -> Result<Option<u64>> {
        self.skip_spaces()?;
        self.buffer.clear();
        let line = self.line;
        match self.scan_item(line)? {
            ItemEnd::Comma => {}
            ItemEnd::Bracket => self.end_of_list()?,
            ItemEnd::EndOfFile => return Err(self.error_at(self.rows + 1, line, None, RowProblem::CutOff)),
        }
        Ok(Some(line))
    }

    fn scan_item(&mut self, line: u64) -> Result<ItemEnd> {
        let (mut depth, mut in_text, mut escaped) = (0_u64, false, false);
        loop {
            let available = self.input.fill_buf().map_err(|cause| read_error(&self.path, cause))?;
            if available.is_empty() {
                return Ok(ItemEnd::EndOfFile);
            }
            let mut end = None;
            let mut taken = 0;
            for &byte in available {
                taken += 1;
                self.line += u64::from(byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_text => escaped = true,
                    b'"' => in_text = !in_text,
                    _ if in_text => {}
                    b',' if depth == 0 => end = Some(ItemEnd::Comma),
                    b']' if depth == 0 => end = Some(ItemEnd::Bracket),
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if end.is_some() {
                    break;
                }
            }
            self.buffer.extend_from_slice(&available[..taken - usize::from(end.is_some())]);
            self.input.consume(taken);
            self.check_length(line)?;
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn end_of_list(&mut self) -> Result<()> {
        self.layout = Layout::Ended;
        match self.skip_spaces()? {
            None => Ok(()),
            Some(_) => {
                let problem = format!("goes on after the end of its list (line {})", self.line);
                Err(DataError::File { path: self.path.clone(), problem })
            }
        }
    }

    fn check_length(&self, line: u64) -> Result<()> {
        if self.buffer.len() as u64 <= self.limit {
            return Ok(());
        }
        Err(self.error_at(self.rows + 1, line, None, RowProblem::TooLong { limit: self.limit }))
    }

    fn text_problem(&self) -> Option<RowProblem> {
        if self.buffer.contains(&0) {
            return Some(RowProblem::Nul);
        }
        let error = std::str::from_utf8(&self.buffer).err()?;
        Some(RowProblem::NotUtf8 { offset: error.valid_up_to() })
    }

    pub(crate) fn error_at(&self, row: u64, line: u64, field: Option<String>, problem: RowProblem) -> DataError {
        let place = Place { path: self.path.clone(), row, line, field };
        DataError::Row { place: Box::new(place), problem }
    }
}

fn read_error(path: &Path, cause: io::Error) -> DataError {
    DataError::Read { path: path.to_path_buf(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8], limit: u64) -> Result<Vec<(String, u64)>> {
        // A tiny buffer makes every row cross its end.
        let input = BufReader::with_capacity(3, text);
        let mut reader = RowReader::new(input, Path::new("data.json"), ByteCount(limit));
        let mut found = Vec::new();
        while let Some(row) = reader.next_row()? {
            assert_eq!(row.number, found.len() as u64 + 1);
            found.push((row.text.to_string(), row.line));
        }
        Ok(found)
    }

    fn check(text: &str, expected: &[(&str, u64)]) {
        let expected: Vec<(String, u64)> = expected.iter().map(|(row, line)| (row.to_string(), *line)).collect();
        assert_eq!(rows(text.as_bytes(), 100).unwrap(), expected, "{text}");
    }

    #[test]
    fn lines_and_lists_are_cut_into_rows_with_their_lines() {
        check("", &[]);
        check(" \n\r\n", &[]);
        check("[]", &[]);
        check("[ \n ]\n", &[]);
        check("{\"a\":1}\n\n  {\"b\":2}\r\n", &[("{\"a\":1}", 1), ("{\"b\":2}", 3)]);
        check("{\"a\":1}\n{\"b\":2}", &[("{\"a\":1}", 1), ("{\"b\":2}", 2)]);
        check(
            "\u{feff}[{\"a\":[1,2]},\n\n {\"b\":\"],[\\\"\"}\n]",
            &[("{\"a\":[1,2]}", 1), ("{\"b\":\"],[\\\"\"}", 3)],
        );
        check("[\n{\n\"a\": 1\n},\n{}\n]\n", &[("{\n\"a\": 1\n}", 2), ("{}", 5)]);
    }

    #[test]
    fn a_row_over_the_limit_stops_reading_at_the_limit() {
        struct Endless {
            handed_out: usize,
        }
        impl io::Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(b'x');
                self.handed_out += buffer.len();
                assert!(self.handed_out < 10_000, "reading went on");
                Ok(buffer.len())
            }
        }
        for start in ["", "["] {
            let input = BufReader::with_capacity(64, io::Read::chain(start.as_bytes(), Endless { handed_out: 0 }));
            let mut reader = RowReader::new(input, Path::new("data.json"), ByteCount(1000));
            let Err(error) = reader.next_row() else { panic!("an endless row was accepted") };
            assert!(matches!(error, DataError::Row { problem: RowProblem::TooLong { limit: 1000 }, .. }), "{error}");
        }
    }

    #[test]
    fn damaged_rows_are_named() {
        for (text, row, line, problem) in [
            (&b"{\"a\":1}\n\xff\xfe{}"[..], 2, 2, "the row is not UTF-8 (byte 0 of the row)"),
            (b"{\"a\":\"\x00\"}", 1, 1, "a NUL character in the text"),
            (b"[{},\n{\"a\":", 2, 2, "the file ends inside the row"),
            (b"[{}", 1, 1, "the file ends inside the row"),
        ] {
            let error = rows(text, 100).unwrap_err();
            let DataError::Row { place, problem: found } = error else { panic!("{error}") };
            assert_eq!((place.row, place.line, found.to_string().as_str()), (row, line, problem));
        }
        let error = rows(b"[{}]\n[]", 100).unwrap_err();
        assert_eq!(error.to_string(), "`data.json` goes on after the end of its list (line 2)");
    }
}
