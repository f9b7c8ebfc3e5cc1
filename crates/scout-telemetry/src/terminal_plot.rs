//! A small plot of the loss made of characters, for the end of a demo. It has no colours and no smoothing.

/// Plots the losses in order, `width` columns by `height` lines with the axis at the left, the last line ending without
/// a newline. With `utf8` eight dots share a character, else one. Losses that are not finite are left out; without any,
/// the plot is empty.
pub fn terminal_plot(losses: &[f64], width: usize, height: usize, utf8: bool) -> String {
    let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    let (Some(low), Some(high)) = (finite.iter().copied().reduce(f64::min), finite.iter().copied().reduce(f64::max))
    else {
        return String::new();
    };
    let labels = [format!("{high:.3}"), format!("{low:.3}")];
    let label_width = labels.iter().map(String::len).max().unwrap_or_default();
    let (height, columns) = (height.max(2), width.saturating_sub(label_width + 2).max(2));
    let grid = Grid::plot(&finite, (low, high), (columns, height), utf8);
    let mut lines = Vec::with_capacity(height);
    for row in 0..height {
        let label = if row == 0 {
            &labels[0]
        } else if row + 1 == height {
            &labels[1]
        } else {
            ""
        };
        let bar = match (utf8, label.is_empty()) {
            (true, true) => '│',
            (true, false) => '┤',
            (false, _) => '|',
        };
        lines.push(format!("{label:>label_width$} {bar}{}", grid.line(row).trim_end()));
    }
    lines.join("\n")
}

/// Dots on a grid finer than the characters.
struct Grid {
    columns: usize,
    cell: (usize, usize),
    dots: Vec<bool>,
}

impl Grid {
    fn plot(losses: &[f64], (low, high): (f64, f64), (columns, height): (usize, usize), utf8: bool) -> Grid {
        let cell = if utf8 { (2, 4) } else { (1, 1) };
        let (dot_columns, dot_rows) = (columns * cell.0, height * cell.1);
        let mut grid = Grid { columns, cell, dots: vec![false; dot_columns * dot_rows] };
        let place = |loss: f64| match high - low {
            // A flat curve lies at the bottom, beside its label.
            span if span > 0.0 => ((high - loss) / span * (dot_rows - 1) as f64).round() as usize,
            _ => dot_rows - 1,
        };
        let mut last: Option<usize> = None;
        for column in 0..dot_columns {
            let position = column as f64 / (dot_columns - 1) as f64 * (losses.len() - 1) as f64;
            let (index, share) = (position as usize, position.fract());
            let next = losses[(index + 1).min(losses.len() - 1)];
            let row = place(losses[index] + (next - losses[index]) * share);
            // The rows between two columns are filled, so that a steep fall stays one line.
            let from = last.map_or(row, |last| if last < row { last + 1 } else { last.saturating_sub(1).max(row) });
            for filled in from.min(row)..=from.max(row) {
                grid.dots[filled * dot_columns + column] = true;
            }
            last = Some(row);
        }
        grid
    }

    fn line(&self, row: usize) -> String {
        (0..self.columns).map(|column| self.character(row, column)).collect()
    }

    fn character(&self, row: usize, column: usize) -> char {
        let dot = |x: usize, y: usize| {
            self.dots[(row * self.cell.1 + y) * self.columns * self.cell.0 + column * self.cell.0 + x]
        };
        if self.cell == (1, 1) {
            return if dot(0, 0) { '*' } else { ' ' };
        }
        // Braille numbers its dots down the left column, then down the right, and the fourth row last.
        const ORDER: [(usize, usize); 8] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
        let mut pattern = 0;
        for (bit, (x, y)) in ORDER.into_iter().enumerate() {
            pattern |= u32::from(dot(x, y)) << bit;
        }
        match pattern {
            0 => ' ',
            _ => char::from_u32(0x2800 + pattern).expect("all 256 braille patterns are characters"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_falls_from_the_upper_left_to_the_lower_right() {
        let plot = terminal_plot(&[3.0, 2.0, 1.0], 12, 3, false);
        assert_eq!(plot, "3.000 |*\n      | **\n1.000 |   **");
    }

    #[test]
    fn a_steep_fall_stays_one_line() {
        let plot = terminal_plot(&[4.0, 0.0], 9, 4, false);
        assert_eq!(plot, "4.000 |*\n      | *\n      | *\n0.000 | *");
    }

    #[test]
    fn utf8_plots_use_braille_and_the_asked_size() {
        let losses: Vec<f64> = (0..200).map(|step| 6.0 * (-0.02 * f64::from(step)).exp()).collect();
        let plot = terminal_plot(&losses, 60, 8, true);
        assert_eq!(plot.lines().count(), 8);
        assert!(plot.lines().all(|line| line.chars().count() <= 60), "{plot}");
        assert!(plot.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "{plot}");
        assert!(terminal_plot(&losses, 60, 8, false).is_ascii());
    }

    #[test]
    fn odd_inputs_are_plotted_or_left_out() {
        assert_eq!(terminal_plot(&[], 40, 5, true), "");
        assert_eq!(terminal_plot(&[f64::NAN], 40, 5, true), "");
        assert_eq!(terminal_plot(&[2.0, 2.0], 10, 2, false), "2.000 |\n2.000 |***");
        assert_eq!(terminal_plot(&[f64::INFINITY, 1.0], 0, 0, false).lines().count(), 2);
    }
}
