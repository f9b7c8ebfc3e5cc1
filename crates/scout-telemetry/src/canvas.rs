//! A picture in memory on which lines and text are drawn with soft edges. It knows nothing of axes or losses.

use crate::glyphs::glyph;

pub type Point = (f32, f32);

/// A white picture that is painted over, one colour at a time. The origin is the upper left corner, y grows downwards.
pub struct Canvas {
    pub width: usize,
    pub height: usize,
    pixels: Vec<[f32; 3]>,
}

impl Canvas {
    pub fn white(width: usize, height: usize) -> Canvas {
        Canvas { width, height, pixels: vec![[255.0; 3]; width * height] }
    }

    /// Mixes a colour into the picture wherever `draw` leaves ink.
    pub fn paint(&mut self, color: [u8; 3], opacity: f32, draw: impl FnOnce(&mut Ink)) {
        let mut ink = Ink { width: self.width, height: self.height, coverage: vec![0.0; self.pixels.len()] };
        draw(&mut ink);
        for (pixel, coverage) in self.pixels.iter_mut().zip(&ink.coverage) {
            let share = coverage * opacity;
            for (old, new) in pixel.iter_mut().zip(color) {
                *old += (f32::from(new) - *old) * share;
            }
        }
    }

    /// The pixels row by row as red, green, blue.
    pub fn into_rgb(self) -> Vec<u8> {
        self.pixels.into_iter().flatten().map(|value| value.round() as u8).collect()
    }
}

/// Which way text runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Right,
    Up,
}

/// How much of each pixel one colour covers.
///
/// Strokes take the larger coverage instead of adding up: a pale line that crosses itself, or meets itself in a corner,
/// stays as pale as everywhere else.
pub struct Ink {
    width: usize,
    height: usize,
    coverage: Vec<f32>,
}

impl Ink {
    /// A line of the given width with round ends; of one point, a dot.
    pub fn line(&mut self, points: &[Point], line_width: f32) {
        if let [only] = points {
            self.segment(*only, *only, line_width / 2.0);
        }
        for pair in points.windows(2) {
            self.segment(pair[0], pair[1], line_width / 2.0);
        }
    }

    /// A filled rectangle with edges on the grid of pixels.
    pub fn fill(&mut self, upper_left: (usize, usize), lower_right: (usize, usize)) {
        for y in upper_left.1..lower_right.1.min(self.height) {
            for x in upper_left.0..lower_right.0.min(self.width) {
                self.coverage[y * self.width + x] = 1.0;
            }
        }
    }

    /// Text whose middle lies at `middle`; `size` is the height of a capital.
    pub fn text(&mut self, text: &str, middle: Point, size: f32, direction: Direction) {
        let cell = size / 6.0;
        let start = -text_width(text, size) / 2.0;
        let mut pen = start;
        for character in text.chars() {
            let shape = glyph(character);
            for stroke in &shape.strokes {
                let points: Vec<Point> = stroke
                    .iter()
                    .map(|(x, y)| {
                        let (along, across) = (pen + x * cell, (y - 3.0) * cell);
                        match direction {
                            Direction::Right => (middle.0 + along, middle.1 + across),
                            Direction::Up => (middle.0 + across, middle.1 - along),
                        }
                    })
                    .collect();
                // A dot as thin as a stroke would be lost.
                let weight = if points.len() == 1 { 1.5 } else { 1.0 };
                self.line(&points, size * STROKE * weight);
            }
            pen += (shape.width + GAP) * cell;
        }
    }

    fn segment(&mut self, start: Point, end: Point, radius: f32) {
        let reach = radius + 1.0;
        let clip = |value: f32, limit: usize| value.clamp(0.0, limit as f32) as usize;
        let columns = clip(start.0.min(end.0) - reach, self.width)..clip(start.0.max(end.0) + reach + 1.0, self.width);
        let rows = clip(start.1.min(end.1) - reach, self.height)..clip(start.1.max(end.1) + reach + 1.0, self.height);
        for y in rows {
            for x in columns.clone() {
                let middle_of_pixel = (x as f32 + 0.5, y as f32 + 0.5);
                let covered = (radius + 0.5 - distance(middle_of_pixel, start, end)).clamp(0.0, 1.0);
                let pixel = &mut self.coverage[y * self.width + x];
                *pixel = pixel.max(covered);
            }
        }
    }
}

/// Cells between two characters.
const GAP: f32 = 1.9;
/// Width of a stroke as a share of the height of a capital.
const STROKE: f32 = 0.125;

/// How far text of this size reaches.
pub fn text_width(text: &str, size: f32) -> f32 {
    let cells: f32 = text.chars().map(|character| glyph(character).width + GAP).sum();
    (cells - GAP).max(0.0) * size / 6.0
}

fn distance(point: Point, start: Point, end: Point) -> f32 {
    let along = (end.0 - start.0, end.1 - start.1);
    let length_squared = along.0 * along.0 + along.1 * along.1;
    let from_start = (point.0 - start.0, point.1 - start.1);
    let share = match length_squared {
        0.0 => 0.0,
        _ => ((from_start.0 * along.0 + from_start.1 * along.1) / length_squared).clamp(0.0, 1.0),
    };
    (from_start.0 - share * along.0).hypot(from_start.1 - share * along.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_covers_its_width_and_nothing_beside_it() {
        let mut canvas = Canvas::white(20, 10);
        canvas.paint([0, 0, 0], 1.0, |ink| ink.line(&[(2.0, 5.0), (18.0, 5.0)], 2.0));
        let rgb = canvas.into_rgb();
        let gray = |x: usize, y: usize| rgb[(y * 20 + x) * 3];
        assert_eq!((gray(10, 4), gray(10, 5)), (0, 0));
        assert_eq!((gray(10, 2), gray(10, 7), gray(0, 0)), (255, 255, 255));
    }

    #[test]
    fn a_pale_line_that_crosses_itself_does_not_get_darker() {
        let mut canvas = Canvas::white(20, 20);
        let cross = [(2.0, 2.0), (18.0, 18.0), (18.0, 2.0), (2.0, 18.0)];
        canvas.paint([0, 0, 0], 0.4, |ink| ink.line(&cross, 3.0));
        let darkest = canvas.into_rgb().into_iter().min();
        assert_eq!(darkest, Some(153));
    }

    #[test]
    fn drawing_past_the_edge_is_cut_off() {
        let mut canvas = Canvas::white(8, 8);
        canvas.paint([0, 0, 0], 1.0, |ink| {
            ink.line(&[(-50.0, -50.0), (50.0, 50.0)], 2.0);
            ink.fill((6, 6), (100, 100));
            ink.text("past the edge", (8.0, 0.0), 10.0, Direction::Up);
        });
        assert_eq!(canvas.into_rgb().len(), 8 * 8 * 3);
    }
}
