//! `training_loss.png`: the loss over the steps as LLaMA-Factory draws it, the original pale and the smoothed line on
//! top. One curve on linear axes, no general plotting.

use std::fs;
use std::path::Path;

use crate::canvas::{Canvas, Direction, Ink, Point, text_width};
use crate::error::TelemetryError;
use crate::ticks::{Ticks, ticks};

/// Draws the losses of `(step, loss)` into a PNG of 640 x 480 pixels. Losses that are not finite are left out; without
/// any, the axes say so.
pub fn write_loss_picture(path: &Path, losses: &[(u64, f64)], title: &str) -> Result<(), TelemetryError> {
    fs::write(path, encode_loss_picture(losses, title)).map_err(|cause| TelemetryError::create(path, cause))
}

/// The bytes of that PNG.
pub fn encode_loss_picture(losses: &[(u64, f64)], title: &str) -> Vec<u8> {
    let canvas = draw(losses, title);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, canvas.width as u32, canvas.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("a picture in memory takes its header");
    writer.write_image_data(&canvas.into_rgb()).expect("the picture has width x height x 3 bytes");
    writer.finish().expect("a picture in memory takes its end");
    bytes
}

/// LLaMA-Factory's smoothing: an exponential average whose memory grows with the number of points.
pub fn smoothed(losses: &[f64]) -> Vec<f64> {
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * losses.len() as f64).exp()) - 0.5);
    let mut last = losses.first().copied().unwrap_or_default();
    let mut smooth = Vec::with_capacity(losses.len());
    for loss in losses {
        last = last * weight + (1.0 - weight) * loss;
        smooth.push(last);
    }
    smooth
}

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const BLUE: [u8; 3] = [0x1f, 0x77, 0xb4];
const BLACK: [u8; 3] = [0; 3];
const PALE: f32 = 0.4;
const CURVE_WIDTH: f32 = 2.1;
const FRAME_WIDTH: f32 = 1.0;
const TICK_LENGTH: f32 = 5.0;
const TEXT: f32 = 10.0;
const TITLE: f32 = 12.0;
// The inside of the frame, on pixel middles so that its lines are sharp.
const LEFT: f32 = 80.5;
const RIGHT: f32 = 600.5;
const TOP: f32 = 50.5;
const BOTTOM: f32 = 420.5;

/// The ranges that the frame shows.
struct Axes {
    steps: (f64, f64),
    losses: (f64, f64),
}

impl Axes {
    /// A twentieth of the range stays free on each side; a single value gets a range around it.
    fn around(points: &[(f64, f64)]) -> Axes {
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
            match high - low {
                span if span > 0.0 && span.is_finite() => (low - span / 20.0, high + span / 20.0),
                _ if low.is_finite() => (low - 0.05 * low.abs().max(1.0), low + 0.05 * low.abs().max(1.0)),
                _ => (0.0, 1.0),
            }
        };
        Axes {
            steps: range(&mut points.iter().map(|(step, _)| *step)),
            losses: range(&mut points.iter().map(|(_, loss)| *loss)),
        }
    }

    fn place(&self, (step, loss): (f64, f64)) -> Point {
        let share = |value: f64, (low, high): (f64, f64)| ((value - low) / (high - low)) as f32;
        (LEFT + (RIGHT - LEFT) * share(step, self.steps), BOTTOM - (BOTTOM - TOP) * share(loss, self.losses))
    }
}

fn draw(losses: &[(u64, f64)], title: &str) -> Canvas {
    let points: Vec<(f64, f64)> =
        losses.iter().filter(|(_, loss)| loss.is_finite()).map(|(step, loss)| (*step as f64, *loss)).collect();
    let axes = Axes::around(&points);
    let smooth = smoothed(&points.iter().map(|(_, loss)| *loss).collect::<Vec<_>>());
    let original: Vec<Point> = points.iter().map(|point| axes.place(*point)).collect();
    let averaged: Vec<Point> = points.iter().zip(smooth).map(|((step, _), loss)| axes.place((*step, loss))).collect();

    let mut canvas = Canvas::white(WIDTH, HEIGHT);
    canvas.paint(BLUE, PALE, |ink| ink.line(&original, CURVE_WIDTH));
    canvas.paint(BLUE, 1.0, |ink| ink.line(&averaged, CURVE_WIDTH));
    let step_ticks = ticks(axes.steps.0, axes.steps.1, 9, true);
    let loss_ticks = ticks(axes.losses.0, axes.losses.1, 9, false);
    canvas.paint(BLACK, 1.0, |ink| {
        frame(ink);
        marks(ink, &axes, &step_ticks, &loss_ticks);
        words(ink, title, points.is_empty());
    });
    if !points.is_empty() {
        legend(&mut canvas, &original);
    }
    canvas
}

fn frame(ink: &mut Ink) {
    let corners = [(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM), (LEFT, TOP)];
    ink.line(&corners, FRAME_WIDTH);
}

fn marks(ink: &mut Ink, axes: &Axes, step_ticks: &Ticks, loss_ticks: &Ticks) {
    for (value, label) in step_ticks.values.iter().zip(&step_ticks.labels) {
        let x = on_pixel(axes.place((*value, axes.losses.0)).0);
        ink.line(&[(x, BOTTOM), (x, BOTTOM + TICK_LENGTH)], FRAME_WIDTH);
        ink.text(label, (x, BOTTOM + TICK_LENGTH + 11.0), TEXT, Direction::Right);
    }
    for (value, label) in loss_ticks.values.iter().zip(&loss_ticks.labels) {
        let y = on_pixel(axes.place((axes.steps.0, *value)).1);
        ink.line(&[(LEFT - TICK_LENGTH, y), (LEFT, y)], FRAME_WIDTH);
        let middle = LEFT - TICK_LENGTH - 5.0 - text_width(label, TEXT) / 2.0;
        ink.text(label, (middle, y), TEXT, Direction::Right);
    }
}

fn words(ink: &mut Ink, title: &str, is_empty: bool) {
    let center = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
    // A title too long for the picture loses its beginning: the end of a path tells runs apart.
    let mut shown = title.to_string();
    while text_width(&shown, TITLE) > WIDTH as f32 - 24.0 {
        shown = format!("...{}", shown.trim_start_matches("...").chars().skip(1).collect::<String>());
    }
    ink.text(
        &shown,
        (center.0.min(WIDTH as f32 - 12.0 - text_width(&shown, TITLE) / 2.0), TOP - 18.0),
        TITLE,
        Direction::Right,
    );
    ink.text("step", (center.0, BOTTOM + 40.0), TEXT, Direction::Right);
    ink.text("loss", (22.0, center.1), TEXT, Direction::Up);
    if is_empty {
        ink.text("no loss was logged", center, TEXT, Direction::Right);
    }
}

/// The box with the two names, in the upper corner that the curve leaves emptier.
fn legend(canvas: &mut Canvas, curve: &[Point]) {
    const BOX: (f32, f32) = (132.0, 46.0);
    const MARGIN: f32 = 8.0;
    let crowd =
        |left: f32| curve.iter().filter(|(x, y)| (left..left + BOX.0).contains(x) && *y < TOP + MARGIN + BOX.1).count();
    let (at_right, at_left) = (RIGHT - MARGIN - BOX.0, LEFT + MARGIN);
    let left = if crowd(at_left) < crowd(at_right) { at_left } else { at_right };
    let (right, top, bottom) = (left + BOX.0, TOP + MARGIN, TOP + MARGIN + BOX.1);
    canvas.paint([255; 3], 0.8, |ink| ink.fill((left as usize, top as usize), (right as usize, bottom as usize)));
    let corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
    canvas.paint([204; 3], 1.0, |ink| ink.line(&corners, FRAME_WIDTH));
    for (name, y, opacity) in [("original", top + 14.0, PALE), ("smoothed", top + 32.0, 1.0)] {
        canvas.paint(BLUE, opacity, |ink| ink.line(&[(left + 9.0, y), (left + 36.0, y)], CURVE_WIDTH));
        let middle = left + 46.0 + text_width(name, TEXT) / 2.0;
        canvas.paint(BLACK, 1.0, |ink| ink.text(name, (middle, y), TEXT, Direction::Right));
    }
}

/// The nearest middle of a pixel, where a line of width one is sharp.
fn on_pixel(value: f32) -> f32 {
    value.floor() + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    fn count(pixels: &[u8], color: [u8; 3]) -> usize {
        pixels.chunks_exact(3).filter(|pixel| **pixel == color).count()
    }

    #[test]
    fn smoothing_follows_llama_factorys_formula() {
        // Computed with the published Python function.
        let expected = [4.0, 3.089701, 2.097747, 1.098469];
        for (found, expected) in smoothed(&[4.0, 3.0, 2.0, 1.0]).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn the_picture_shows_the_smoothed_line_over_a_pale_one() {
        let losses: Vec<(u64, f64)> = (1..=60).map(|step| (step, 6.0 / (step as f64).sqrt())).collect();
        let (width, height, pixels) = decode(&encode_loss_picture(&losses, "training loss of run"));
        assert_eq!((width, height), (640, 480));
        let pale = BLUE.map(|value| (255.0 + (f32::from(value) - 255.0) * PALE).round() as u8);
        assert!(count(&pixels, BLUE) > 500, "{}", count(&pixels, BLUE));
        assert!(count(&pixels, pale) > 100, "{}", count(&pixels, pale));
    }

    #[test]
    fn odd_curves_are_drawn_too() {
        for losses in [
            vec![],
            vec![(1, 2.0)],
            vec![(1, 2.0), (2, 2.0), (3, 2.0)],
            vec![(1, f64::NAN), (2, 1.0), (3, f64::INFINITY), (4, 0.5)],
            vec![(1, 1e30), (1_000_000, -1e30)],
        ] {
            let has_curve = losses.iter().any(|(_, loss)| loss.is_finite());
            let (_, _, pixels) = decode(&encode_loss_picture(&losses, &"a very long title ".repeat(20)));
            assert_eq!(count(&pixels, BLUE) > 0, has_curve, "{losses:?}");
            assert!(count(&pixels, BLACK) > 500, "{losses:?}");
        }
    }
}
