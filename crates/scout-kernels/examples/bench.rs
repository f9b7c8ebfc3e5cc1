#![allow(non_snake_case)]
use scout_device::Tensor;
use scout_kernels::*;
use std::time::Instant;
fn t(seed: u32, shape: impl Into<scout_core::Shape>) -> Tensor {
    let shape: scout_core::Shape = shape.into();
    let n = shape.num_elements();
    let mut s = seed.wrapping_mul(747796405).wrapping_add(1);
    Tensor::from_f32(
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 8) as f32 / 8388608.0 - 1.0
            })
            .collect(),
        shape,
    )
    .unwrap()
}
fn bench<R>(name: &str, work: f64, unit: &str, mut f: impl FnMut() -> R) {
    f();
    let mut best = f64::MAX;
    let begin = Instant::now();
    let mut n = 0;
    while n < 3 || (begin.elapsed().as_secs_f64() < 0.4 && n < 200) {
        let s = Instant::now();
        std::hint::black_box(f());
        best = best.min(s.elapsed().as_secs_f64());
        n += 1;
    }
    println!("{name:40} {:9.3} ms {:8.2} {unit}", best * 1e3, work / best / 1e9);
}
fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let on = |s: &str| s.contains(&filter);
    if on("mm") {
        for (m, k, n) in [
            (512, 512, 512),
            (1024, 1024, 1024),
            (2048, 512, 1536),
            (1024, 1024, 8),
            (1024, 1024, 16),
            (1024, 8, 1024),
            (1024, 1024, 64),
            (512, 512, 8),
            (512, 8, 512),
            (8, 1024, 1024),
            (1024, 4096, 4),
            (64, 64, 64),
            (64, 64, 512),
            (64, 512, 64),
            (16, 512, 512),
        ] {
            let w = 2.0 * m as f64 * k as f64 * n as f64;
            let (a, b, bt, at) = (t(1, [m, k]), t(2, [k, n]), t(3, [n, k]), t(4, [k, m]));
            bench(&format!("nn {m}x{k}x{n}"), w, "GF/s", || matmul::nn(&a, &b).unwrap());
            bench(&format!("nt {m}x{k}x{n}"), w, "GF/s", || matmul::nt(&a, &bt).unwrap());
            bench(&format!("tn {m}x{k}x{n}"), w, "GF/s", || matmul::tn(&at, &b).unwrap());
            // transposed variants
            let tr = |x: &Tensor| Tensor::from_host(x.host().t().unwrap()).unwrap();
            bench(&format!("nn as (bT aT)T {m}x{k}x{n}"), w, "GF/s", || {
                tr(&Tensor::from_host(b.host().t().unwrap().matmul(&a.host().t().unwrap()).unwrap()).unwrap())
            });
            bench(&format!("nt as (b aT)T {m}x{k}x{n}"), w, "GF/s", || tr(&matmul::nt(&bt, &a).unwrap()));
            bench(&format!("tn as (bT a)T {m}x{k}x{n}"), w, "GF/s", || {
                tr(&Tensor::from_host(b.host().t().unwrap().matmul(at.host()).unwrap()).unwrap())
            });
        }
    }
    if on("el") {
        let (x, dy, w) = (t(1, [2048, 1024]), t(2, [2048, 1024]), t(3, [1024]));
        let gb = 2048.0 * 1024.0 * 4.0;
        bench("copy", 2.0 * gb, "GB/s", || x.to_f32_vec().unwrap());
        bench("add", 3.0 * gb, "GB/s", || rows::add(&x, &dy).unwrap());
        bench("rms fwd", 2.0 * gb, "GB/s", || rms_norm::forward(&x, &w, 1e-5).unwrap());
        let nr = rms_norm::forward(&x, &w, 1e-5).unwrap();
        bench("rms bwd", 3.0 * gb, "GB/s", || rms_norm::backward(&dy, &x, &nr.inverse_rms, &w).unwrap());
        bench("swiglu fwd", 1.5 * gb, "GB/s", || swiglu::forward(&x).unwrap());
        let dh = t(5, [2048, 512]);
        bench("swiglu bwd", 2.5 * gb, "GB/s", || swiglu::backward(&dh, &x).unwrap());
        let h = |x: &Tensor| x.reshape([2048, 16, 64]).unwrap();
        let pos = Tensor::from_u32((0..2048).collect(), [2048]).unwrap();
        let p = qk_position::Position::RotateAndNormalise { frequencies: t(6, [32]), epsilon: 1e-5 };
        bench("qk fwd", 2.0 * gb, "GB/s", || qk_position::forward(&h(&x), &pos, &p).unwrap());
        let pl = qk_position::forward(&h(&x), &pos, &p).unwrap();
        bench("qk bwd", 3.0 * gb, "GB/s", || qk_position::backward(&h(&dy), &pl, &pos, &p).unwrap());
        let keys = lora::TokenKeys { samples: vec![1; 2048], positions: (0..2048).collect() };
        bench("dropout", 2.0 * gb, "GB/s", || {
            lora::dropout(&x, &keys, lora::DropoutKey { seed: 1, step: 2, module: 3 }, 0.05).unwrap()
        });
        let y = t(7, [2048, 2048]);
        let d = t(8, [2048, 1024]);
        bench("add_delta", 3.0 * gb, "GB/s", || lora::add_delta(y.clone(), 512, &d, 0.5).unwrap());
        bench("columns", 2.0 * gb, "GB/s", || lora::columns(&y, 512, 1024).unwrap());
        let wr = t(9, [16, 1024]);
        let logits = matmul::nt(&x, &wr).unwrap();
        bench("choose", gb, "GB/s", || router::choose(&logits).unwrap());
        let r = router::choose(&logits).unwrap();
        bench("gather_scaled", 2.0 * gb, "GB/s", || router::gather_scaled(&x, &r).unwrap());
        bench("combine", 4.0 * gb, "GB/s", || router::combine(&x, &r, &dy, Some(&x)).unwrap());
        bench("router bwd", 4.0 * gb, "GB/s", || router::backward(&dy, &x, &r, &wr, &x).unwrap());
        bench("gather", 2.0 * gb, "GB/s", || rows::gather(&x, &pos).unwrap());
        let n = 2048 * 1024;
        let (mut a, g, mut m, mut v) = (vec![1.0f32; n], vec![0.1f32; n], vec![0.1f32; n], vec![0.1f32; n]);
        let hy =
            adamw::Hyper { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, step: 3 };
        bench("adamw", 7.0 * gb, "GB/s", || adamw::update(&mut a, &g, &mut m, &mut v, 1.0, &hy).unwrap());
        bench("squares", gb, "GB/s", || norms::sum_of_squares(&g));
        bench("not finite", gb, "GB/s", || norms::count_not_finite(&g));
    }
    if on("ce") {
        let (x, w) = (t(1, [512, 512]), t(2, [8192, 512]));
        let tg = Tensor::from_u32((0..512).collect(), [512]).unwrap();
        let ws = t(3, [512]);
        let f = 2.0 * 512.0 * 512.0 * 8192.0;
        bench("ce matmul alone", f, "GF/s", || matmul::nt(&x, &w).unwrap());
        bench("ce fwd", f, "GF/s", || cross_entropy::forward(&x, &w, &tg).unwrap());
        bench("ce fwd+bwd", 2.0 * f, "GF/s", || cross_entropy::forward_backward(&x, &w, &tg, &ws).unwrap());
    }
    if on("at") {
        for (s, d, nq, nk) in [
            (512usize, 64usize, 8usize, 2usize),
            (512, 64, 5, 1),
            (2048, 64, 4, 2),
            (170, 64, 8, 2),
            (64, 64, 8, 2),
            (32, 64, 8, 2),
            (24, 64, 8, 2),
            (16, 64, 8, 2),
            (12, 64, 8, 2),
            (8, 64, 8, 2),
            (4, 64, 8, 2),
            (1, 64, 8, 2),
            (16, 16, 4, 2),
            (12, 16, 4, 2),
            (32, 16, 4, 2),
        ] {
            let nseg = (4096 / s).max(1);
            let tt = nseg * s;
            let seg: Vec<u32> = (0..=nseg).map(|i| (i * s) as u32).collect();
            let (q, k, v, dc) = (t(1, [tt, nq, d]), t(2, [tt, nk, d]), t(3, [tt, nk, d]), t(4, [tt, nq, d]));
            let f = 4.0 * d as f64 * nq as f64 * nseg as f64 * (s * (s + 1) / 2) as f64;
            let at = attention::forward(&q, &k, &v, &seg, 0.125).unwrap();
            bench(&format!("at fwd {nseg} of {s} d{d} {nq}/{nk}"), f, "GF/s", || {
                attention::forward(&q, &k, &v, &seg, 0.125).unwrap()
            });
            bench(&format!("at bwd {nseg} of {s} d{d} {nq}/{nk}"), 2.5 * f, "GF/s", || {
                attention::backward(&dc, &q, &k, &v, &at, &seg, 0.125).unwrap()
            });
        }
    }
}
