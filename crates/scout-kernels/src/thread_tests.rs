//! No op's bits depend on how many threads there are. Thread pools are made once in a process, so the test starts
//! itself again with one thread and with several and compares what the copies print.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;

use scout_device::Tensor;

use crate::lora::{DropoutKey, TokenKeys};
use crate::matmul::Columns;
use crate::qk_position::Position;
use crate::test_inputs::{bits, index_tensor, indices, tensor, values};
use crate::{
    adamw, attention, cross_entropy, embedding, grouped_matmul, lora, matmul, norms, qk_position, rms_norm, router,
    rows, swiglu,
};

const TEST: &str = "thread_tests::no_bit_depends_on_the_number_of_threads";
/// Set in the copies, which print instead of comparing.
const IS_COPY: &str = "SCOUT_DIST_TEST_PRINTS_HASHES";
const MARK: &str = "hash of ";

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    if std::env::var_os(IS_COPY).is_some() {
        print_hashes();
        return;
    }
    let expected = hashes_with_threads(1);
    assert!(expected.len() > 60, "the copy printed {} hashes", expected.len());
    for num_threads in [2, 3] {
        let found = hashes_with_threads(num_threads);
        assert_eq!(found.len(), expected.len(), "{num_threads} threads");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{num_threads} threads");
        }
    }
}

fn hashes_with_threads(num_threads: usize) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env("RAYON_NUM_THREADS", num_threads.to_string())
        .env(IS_COPY, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    // The harness may have begun a line of its own before the first one.
    lines.lines().filter_map(|line| line.split_once(MARK)).map(|(_, hash)| hash.to_string()).collect()
}

fn print(name: &str, values: impl Hash) {
    let mut hasher = DefaultHasher::new();
    values.hash(&mut hasher);
    println!("{MARK}{name}: {:016x}", hasher.finish());
}

fn print_tensor(name: &str, tensor: &Tensor) {
    print(name, bits(tensor));
}

fn print_hashes() {
    products();
    attentions();
    rows_of_tokens();
    losses();
    flat_runs();
}

fn products() {
    let sizes = [
        (64, 64, 64),
        (65, 130, 33),
        (256, 256, 256),
        (512, 512, 512),
        (1024, 300, 700),
        (1024, 1024, 1024),
        (2000, 1500, 4),
        (1000, 1030, 8),
        (777, 2048, 16),
        (4, 1500, 2000),
        (16, 2048, 777),
        (1, 900, 1300),
        (1300, 900, 1),
        (1500, 4, 1000),
        (900, 16, 700),
    ];
    for (m, k, n) in sizes {
        let name = |form: &str| format!("{form} {m}x{k}x{n}");
        print_tensor(&name("nn"), &matmul::nn(&tensor(1, [m, k]), &tensor(2, [k, n])).unwrap());
        print_tensor(&name("nt"), &matmul::nt(&tensor(1, [m, k]), &tensor(2, [n, k])).unwrap());
        print_tensor(&name("tn"), &matmul::tn(&tensor(1, [k, m]), &tensor(2, [k, n])).unwrap());
    }
    let offsets = [0, 200, 200, 201, 700];
    let (weights, wide, narrow) = (tensor(1, [4, 256, 96]), tensor(2, [700, 256]), tensor(3, [700, 96]));
    print_tensor("grouped nn", &grouped_matmul::nn(&wide, &weights, &offsets).unwrap());
    print_tensor("grouped nt", &grouped_matmul::nt(&narrow, &weights, &offsets).unwrap());
    print_tensor("grouped tn", &grouped_matmul::tn(&wide, &narrow, &offsets).unwrap());
}

fn attentions() {
    let tiny = (0..=200).map(|i| 3 * i).collect::<Vec<u32>>();
    let mixed = vec![0, 1, 12, 13, 26, 90, 600];
    for (name, segments, query, kv, size) in
        [("tiny", tiny, 4, 2, 16), ("mixed", mixed, 6, 2, 32), ("one", vec![0, 600], 2, 1, 64)]
    {
        let segments = attention::Segments::new(segments).unwrap();
        let q = tensor(1, [600, query, size]);
        let (k, v) = (tensor(2, [600, kv, size]), tensor(3, [600, kv, size]));
        let attended = attention::forward(&q, &k, &v, &segments, 0.3).unwrap();
        let dcontext = tensor(4, [600, query, size]);
        let gradients = attention::backward(&dcontext, &q, &k, &v, &attended, &segments, 0.3).unwrap();
        let parts = [&attended.context, &attended.log_sum_exp, &gradients.dq, &gradients.dk, &gradients.dv];
        for (index, part) in parts.into_iter().enumerate() {
            print_tensor(&format!("{name} attention, part {index}"), part);
        }
    }
}

fn rows_of_tokens() {
    let (x, dy) = (tensor(1, [900, 96]), tensor(2, [900, 96]));
    let normed = rms_norm::forward(&x, &tensor(3, [96]), 1e-5).unwrap();
    print_tensor("norm", &normed.y);
    print_tensor(
        "norm backward",
        &rms_norm::backward(&dy, &x, &normed.inverse_rms, &tensor(3, [96]), Some(&x)).unwrap(),
    );
    print_tensor("norm's weight", &rms_norm::weight_gradient(&dy, &x, &normed.inverse_rms).unwrap());

    let heads = |tensor: &Tensor| tensor.reshape([900, 6, 16]).unwrap();
    let at = index_tensor(&indices(5, 900, 10_000));
    let frequencies = Tensor::from_f32(values(6, 8), [8]).unwrap();
    let position = Position::RotateAndNormalise { frequencies, epsilon: 1e-5 };
    let placed = qk_position::forward(&heads(&x), &at, &position).unwrap();
    print_tensor("position", &placed.y);
    print_tensor("position backward", &qk_position::backward(&heads(&dy), &placed, &at, &position).unwrap());

    let weight = tensor(7, [5, 96]);
    let routing = router::choose(&matmul::nt(&x, &weight).unwrap()).unwrap();
    print("order", routing.order_T.u32s().unwrap().to_vec());
    print_tensor("scaled gather", &router::gather_scaled(&x, &routing).unwrap());
    print_tensor("combination", &router::combine(&x, &routing, &dy, Some(&x)).unwrap());
    let gradient = router::backward(&dy, &x, &routing, &weight, &dy).unwrap();
    print_tensor("router backward", &gradient.dx);
    print_tensor("router backward, logits", &gradient.dlogit_T);
    print_tensor("router's weight", &router::weight_gradient(&gradient.dlogit_T, &x, &routing).unwrap());

    print_tensor("swiglu", &swiglu::forward(&x).unwrap());
    print_tensor("swiglu backward", &swiglu::backward(&tensor(8, [900, 48]), &x).unwrap());

    print_tensor("delta", &lora::add_delta(tensor(9, [900, 96]), &x, 0.5).unwrap());
    let narrow = Columns { tensor: &x, start: 17, count: 8 };
    print_tensor("thin product", &lora::product_nt(narrow, &tensor(10, [600, 8]), 0.5, None).unwrap());
    let of_side = tensor(12, [300, 8]);
    let sides = [lora::Side::Product(narrow, &of_side), lora::Side::Zeros(70)];
    print_tensor("thin products side by side", &lora::side_by_side(&sides, 0.5).unwrap());
    let keys = TokenKeys::new(&(0..900).collect::<Vec<u64>>(), &(0..900).collect::<Vec<u32>>()).unwrap();
    let key = DropoutKey { seed: 1, step: 2, module: 3 };
    print_tensor("dropout", &lora::dropout(&x, &keys, key, 0.1).unwrap());

    let backwards = index_tensor(&(0..900).rev().collect::<Vec<u32>>());
    print_tensor("gather", &rows::gather(&x, &backwards).unwrap());
    print_tensor("scatter", &rows::scatter(&x, &backwards, 1000).unwrap());
    print_tensor("product and sum", &matmul::add_nn(Some(tensor(13, [900, 400])), &x, &tensor(14, [96, 400])).unwrap());
    let (first, second) = (tensor(15, [96, 8]), tensor(16, [96, 24]));
    let pairs = [((&x).into(), &first), ((&dy).into(), &second)];
    print_tensor("products side by side", &matmul::side_by_side_nn(&pairs).unwrap());
    print_tensor("embedding", &embedding::forward(&index_tensor(&indices(10, 2000, 900)), &x).unwrap());
    print_tensor(
        "embedding's weight",
        &embedding::weight_gradient(&x, &index_tensor(&indices(11, 900, 400)), 400).unwrap(),
    );
}

fn losses() {
    let (x, weight) = (tensor(1, [300, 48]), tensor(2, [1500, 48]));
    let targets = index_tensor(&indices(3, 300, 1500));
    print_tensor("losses", &cross_entropy::forward(&x, &weight, &targets).unwrap());
    let found = cross_entropy::forward_backward(&x, &weight, &targets, &tensor(4, [300])).unwrap();
    print_tensor("losses with gradient", &found.token_loss);
    print_tensor("gradient of losses", &found.dx);
    let of_head = cross_entropy::forward_backward_of_head(&x, &weight, &targets, &tensor(4, [300])).unwrap();
    print_tensor("gradient of the head", &of_head.dweight);
}

fn flat_runs() {
    const LEN: usize = 100_003;
    let (mut parameters, mut first, mut second) = (values(1, LEN), values(2, LEN), vec![1.0; LEN]);
    let hyper =
        adamw::Hyper { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 3 };
    adamw::update(&mut parameters, &values(3, LEN), &mut first, &mut second, 0.5, &hyper).unwrap();
    print_tensor("adamw", &Tensor::from_f32(parameters, [LEN]).unwrap());
    print_tensor("adamw, first moment", &Tensor::from_f32(first, [LEN]).unwrap());
    print_tensor("adamw, second moment", &Tensor::from_f32(second, [LEN]).unwrap());
    print("squares", norms::sum_of_squares(&values(1, LEN)).to_bits());
    print("not finite", norms::count_not_finite(&values(1, LEN)));
}
