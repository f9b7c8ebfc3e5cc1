//! A small stroke font: every printable ASCII character as straight lines on a grid of 5 columns and 9 rows. It knows
//! shapes and widths only; drawing them is the canvas's work.

/// The lines of one character, as the corners of each stroke in grid cells: x from 0, y from 0 at the top of a capital
/// to 6 on the base line and 8 below it.
pub struct Glyph {
    pub strokes: Vec<Vec<(f32, f32)>>,
    pub width: f32,
}

/// The shape of a character; characters outside the font are an empty box, so that nothing vanishes.
pub fn glyph(character: char) -> Glyph {
    if character == ' ' {
        return Glyph { strokes: Vec::new(), width: 2.0 };
    }
    let index = FONT.iter().position(|(known, _)| *known == character);
    let text = index.map_or("00 40 46 06 00", |index| FONT[index].1);
    let strokes: Vec<Vec<(f32, f32)>> = text
        .split(',')
        .map(|stroke| stroke.split_whitespace().map(|corner| (digit(corner, 0), digit(corner, 1))).collect())
        .collect();
    let width = strokes.iter().flatten().map(|(x, _)| *x).fold(0.0, f32::max);
    Glyph { strokes, width }
}

fn digit(corner: &str, index: usize) -> f32 {
    f32::from(corner.as_bytes()[index] - b'0')
}

/// Strokes are separated by commas, corners by spaces; a corner is the digit of its column and the digit of its row.
/// A stroke of one corner is a dot.
const FONT: [(char, &str); 94] = [
    ('0', "10 30 41 45 36 16 05 01 10"),
    ('1', "01 20 26,06 46"),
    ('2', "01 10 30 41 42 06 46"),
    ('3', "01 10 30 41 42 33 44 45 36 16 05,13 33"),
    ('4', "36 30 04 44"),
    ('5', "40 00 02 32 43 45 36 16 05"),
    ('6', "41 30 10 01 05 16 36 45 44 33 03"),
    ('7', "00 40 16"),
    ('8', "10 30 41 42 33 44 45 36 16 05 04 13 02 01 10,13 33"),
    ('9', "05 16 36 45 41 30 10 01 02 13 43"),
    ('A', "06 20 46,14 34"),
    ('B', "03 00 30 41 42 33 03 06 36 45 44 33"),
    ('C', "41 30 10 01 05 16 36 45"),
    ('D', "00 06 26 44 42 20 00"),
    ('E', "40 00 06 46,03 33"),
    ('F', "40 00 06,03 33"),
    ('G', "41 30 10 01 05 16 36 45 43 23"),
    ('H', "00 06,40 46,03 43"),
    ('I', "00 20,10 16,06 26"),
    ('J', "30 35 26 16 05"),
    ('K', "00 06,40 03 46"),
    ('L', "00 06 46"),
    ('M', "06 00 23 40 46"),
    ('N', "06 00 46 40"),
    ('O', "10 30 41 45 36 16 05 01 10"),
    ('P', "06 00 30 41 42 33 03"),
    ('Q', "10 30 41 45 36 16 05 01 10,24 46"),
    ('R', "06 00 30 41 42 33 03,23 46"),
    ('S', "41 30 10 01 02 13 33 44 45 36 16 05"),
    ('T', "00 40,20 26"),
    ('U', "00 05 16 36 45 40"),
    ('V', "00 26 40"),
    ('W', "00 16 22 36 40"),
    ('X', "00 46,40 06"),
    ('Y', "00 23 40,23 26"),
    ('Z', "00 40 06 46"),
    ('a', "42 46,43 32 12 03 05 16 36 45"),
    ('b', "00 06,03 12 32 43 45 36 16 05"),
    ('c', "43 32 12 03 05 16 36 45"),
    ('d', "40 46,43 32 12 03 05 16 36 45"),
    ('e', "04 44 43 32 12 03 05 16 36 45"),
    ('f', "30 20 11 16,02 32"),
    ('g', "42 47 38 18 07,43 32 12 03 05 16 36 45"),
    ('h', "00 06,03 12 32 43 46"),
    ('i', "02 06,00"),
    ('j', "12 17 08,10"),
    ('k', "00 06,32 04 36"),
    ('l', "00 05 16"),
    ('m', "02 06,03 12 23 26,23 32 43 46"),
    ('n', "02 06,03 12 32 43 46"),
    ('o', "12 32 43 45 36 16 05 03 12"),
    ('p', "02 08,03 12 32 43 45 36 16 05"),
    ('q', "42 48,43 32 12 03 05 16 36 45"),
    ('r', "02 06,03 12 32"),
    ('s', "43 32 12 03 14 34 45 36 16 05"),
    ('t', "10 15 26 36,02 32"),
    ('u', "02 05 16 36 45,42 46"),
    ('v', "02 26 42"),
    ('w', "02 16 23 36 42"),
    ('x', "02 46,42 06"),
    ('y', "02 26,42 18 08"),
    ('z', "02 42 06 46"),
    ('.', "06"),
    (',', "15 16 07"),
    (':', "03,06"),
    (';', "13,15 16 07"),
    ('!', "00 04,06"),
    ('?', "01 10 30 41 42 23 24,26"),
    ('\'', "00 01"),
    ('"', "00 01,20 21"),
    ('`', "00 11"),
    ('-', "04 34"),
    ('_', "07 47"),
    ('+', "22 26,04 44"),
    ('=', "03 43,05 45"),
    ('*', "21 25,02 44,04 42"),
    ('/', "07 30"),
    ('\\', "00 37"),
    ('|', "00 08"),
    ('(', "20 11 15 26"),
    (')', "00 11 15 06"),
    ('[', "20 00 06 26"),
    (']', "00 20 26 06"),
    ('{', "20 11 12 03 14 15 26"),
    ('}', "00 11 12 23 14 15 06"),
    ('<', "41 03 45"),
    ('>', "01 43 05"),
    ('%', "06 40,00 10 11 01 00,35 45 46 36 35"),
    ('#', "10 06,40 36,02 42,04 44"),
    ('&', "46 11 10 20 21 04 05 16 26 44"),
    ('@', "32 22 13 14 25 34 32 35 44 41 30 10 01 05 16 36"),
    ('$', "41 30 10 01 02 13 33 44 45 36 16 05,20 26"),
    ('^', "02 20 42"),
    ('~', "04 13 34 43"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_has_a_shape_of_its_own_inside_the_grid() {
        for byte in b'!'..=b'~' {
            let character = char::from(byte);
            assert_eq!(FONT.iter().filter(|(known, _)| *known == character).count(), 1, "{character}");
            for (x, y) in glyph(character).strokes.into_iter().flatten() {
                assert!((0.0..=4.0).contains(&x) && (0.0..=8.0).contains(&y), "{character} at {x}, {y}");
            }
        }
    }

    #[test]
    fn digits_are_equally_wide_so_that_columns_of_numbers_line_up() {
        for digit in '0'..='9' {
            assert_eq!(glyph(digit).width, 4.0, "{digit}");
        }
    }

    #[test]
    fn an_unknown_character_is_a_box_and_a_space_is_empty() {
        assert_eq!(glyph('é').strokes, [[(0.0, 0.0), (4.0, 0.0), (4.0, 6.0), (0.0, 6.0), (0.0, 0.0)]]);
        assert!(glyph(' ').strokes.is_empty());
    }
}
