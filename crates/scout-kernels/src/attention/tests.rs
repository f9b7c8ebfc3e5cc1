//! Attention against the reference: short segments, tiles with tails, shared key heads; and packing.

use scout_device::Tensor;

use super::heads::Heads;
use super::{Attended, Segments, backward, forward, reference};
use crate::test_inputs::{assert_close, assert_gradient, bits, doubles, tensor};

fn inputs(num_tokens: usize, heads: Heads) -> [Tensor; 4] {
    let (query, kv) = ([num_tokens, heads.query, heads.size], [num_tokens, heads.kv, heads.size]);
    [tensor(1, query), tensor(2, kv), tensor(3, kv), tensor(4, query)]
}

fn segments(borders: &[u32]) -> Segments {
    Segments::new(borders.to_vec()).unwrap()
}

fn check(segments: &[u32], (query, kv, size): (usize, usize, usize)) {
    let what = format!("{segments:?}, {query} over {kv} heads of {size}");
    let num_tokens = *segments.last().unwrap() as usize;
    // Larger than 1/√d, so that the softmax is far from flat.
    let heads = Heads { query, kv, size, scale: 3.0 / (size as f32).sqrt() };
    let [q, k, v, dcontext] = inputs(num_tokens, heads);
    let (q64, k64, v64) = (doubles(&q), doubles(&k), doubles(&v));

    let expected = reference::forward([&q64, &k64, &v64], segments, heads);
    let run = self::segments(segments);
    let attended = forward(&q, &k, &v, &run, heads.scale).unwrap();
    assert_close(&what, &attended.context, q.dims(), &expected.context, 2e-6);
    assert_close(&what, &attended.log_sum_exp, &q.dims()[..2], &expected.log_sum_exp, 2e-6);

    let [dq, dk, dv] = reference::backward(&doubles(&dcontext), [&q64, &k64, &v64], segments, heads);
    let found = backward(&dcontext, &q, &k, &v, &attended, &run, heads.scale).unwrap();
    assert_close(&format!("dq of {what}"), &found.dq, q.dims(), &dq, 5e-6);
    assert_close(&format!("dk of {what}"), &found.dk, k.dims(), &dk, 5e-6);
    assert_close(&format!("dv of {what}"), &found.dv, v.dims(), &dv, 5e-6);
}

#[test]
fn short_segments_agree_with_the_reference() {
    check(&[0], (2, 1, 4));
    check(&[0, 0], (2, 1, 4));
    check(&[0, 1], (1, 1, 2));
    check(&[0, 1, 2, 3], (2, 2, 6));
    check(&[0, 5, 5, 6, 16], (4, 2, 16));
    check(&(0..=50).map(|i| 3 * i).collect::<Vec<u32>>(), (5, 1, 6));
}

#[test]
fn tiles_agree_with_the_reference() {
    check(&[0, 13], (1, 1, 2));
    check(&[0, 64], (2, 2, 6));
    check(&[0, 65], (2, 1, 16));
    check(&[0, 1, 1, 130, 259, 262], (6, 2, 8));
    check(&[0, 200, 264], (3, 3, 6));
}

#[test]
fn gradients_are_those_of_the_forward_pass() {
    let (segments, heads) = ([0, 3, 5], Heads { query: 4, kv: 2, size: 2, scale: 0.9 });
    let [q, k, v, dcontext] = inputs(5, heads).map(|tensor| doubles(&tensor));
    let [dq, dk, dv] = reference::backward(&dcontext, [&q, &k, &v], &segments, heads);
    let context = |operands: [&[f64]; 3]| reference::forward(operands, &segments, heads).context;
    assert_gradient("dq", &q, &dcontext, |q| context([q, &k, &v]), &dq);
    assert_gradient("dk", &k, &dcontext, |k| context([&q, k, &v]), &dk);
    assert_gradient("dv", &v, &dcontext, |v| context([&q, &k, v]), &dv);
}

#[test]
fn packed_segments_equal_separate_ones_to_the_last_bit() {
    let (segments, heads) = ([0u32, 9, 80, 81, 240], Heads { query: 4, kv: 2, size: 8, scale: 0.4 });
    let [q, k, v, dcontext] = inputs(240, heads);
    let run = self::segments(&segments);
    let packed = forward(&q, &k, &v, &run, heads.scale).unwrap();
    let gradients = backward(&dcontext, &q, &k, &v, &packed, &run, heads.scale).unwrap();
    for ends in segments.windows(2) {
        let count = ends[1] - ends[0];
        let part = |tensor: &Tensor| tensor.rows(ends[0] as usize, count as usize).unwrap();
        let (q, k, v) = (part(&q), part(&k), part(&v));
        let run = self::segments(&[0, count]);
        let alone = forward(&q, &k, &v, &run, heads.scale).unwrap();
        assert_eq!(bits(&alone.context), bits(&part(&packed.context)));
        assert_eq!(bits(&alone.log_sum_exp), bits(&part(&packed.log_sum_exp)));
        let found = backward(&part(&dcontext), &q, &k, &v, &alone, &run, heads.scale).unwrap();
        assert_eq!(bits(&found.dq), bits(&part(&gradients.dq)));
        assert_eq!(bits(&found.dk), bits(&part(&gradients.dk)));
        assert_eq!(bits(&found.dv), bits(&part(&gradients.dv)));
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let heads = Heads { query: 1, kv: 1, size: 2, scale: 1e4 };
    for num_tokens in [5, 30] {
        let [q, k, v, _] = inputs(num_tokens, heads);
        let attended = forward(&q, &k, &v, &segments(&[0, num_tokens as u32]), heads.scale).unwrap();
        assert!(attended.context.f32s().unwrap().iter().all(|value| value.abs() <= 1.0));
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let heads = Heads { query: 4, kv: 2, size: 6, scale: 1.0 };
    let [q, k, v, dcontext] = inputs(3, heads);
    let run = segments(&[0, 3]);
    let attended = forward(&q, &k, &v, &run, 1.0).unwrap();
    for borders in [&[0][..], &[0, 2], &[0, 4], &[0, 3, 4]] {
        assert!(forward(&q, &k, &v, &segments(borders), 1.0).is_err(), "{borders:?}");
    }
    assert!(forward(&k, &q, &q, &run, 1.0).is_err(), "4 key heads do not divide 2 query heads");
    assert!(forward(&q, &k, &q, &run, 1.0).is_err());
    assert!(forward(&q, &k, &tensor(1, [3, 2, 5]), &run, 1.0).is_err());
    assert!(forward(&q, &tensor(1, [2, 2, 6]), &v, &run, 1.0).is_err());
    assert!(backward(&k, &q, &k, &v, &attended, &run, 1.0).is_err());
    let wrong = Attended { context: dcontext.clone(), log_sum_exp: tensor(1, [3, 2]) };
    assert!(backward(&dcontext, &q, &k, &v, &wrong, &run, 1.0).is_err());
}
