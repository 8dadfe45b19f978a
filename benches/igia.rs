//! Scores and IGIA matrices of one weight, in the shape of a SmolLM2 `down_proj`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use igia::{StepPair, importance, product_norm_squared, reference};
use ndarray::Array2;

const OUT: usize = 576;
const IN: usize = 1536;
const RANK: usize = 8;
const STEPS: usize = 8;

fn matrix(rows: usize, columns: usize, salt: u32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        let mixed = ((i * columns + j) as u32).wrapping_add(salt).wrapping_mul(2_654_435_761);
        (mixed >> 16) as f32 / 65_536.0 - 0.5
    })
}

fn benches(criterion: &mut Criterion) {
    let pairs: Vec<_> = (0..STEPS as u32)
        .map(|step| (matrix(OUT, RANK, step), matrix(RANK, IN, step + 99)))
        .collect();
    let steps: Vec<_> = pairs.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
    let close = |x: f64, y: f64| (x - y).abs() <= 1e-5 * y.abs() + 1e-12;
    let (found, expected) = (importance(&steps), reference::importance(&steps));
    assert!(found.iter().zip(&expected).all(|(&x, &y)| close(x.into(), y.into())));
    let (b, a) = &pairs[0];
    let (found, expected) =
        (product_norm_squared(b, a), reference::product_norm_squared(&steps[0]));
    assert!(found.is_ok_and(|found| close(found, expected)));

    let mut group = criterion.benchmark_group("igia");
    group.sample_size(10);
    group.throughput(Throughput::Elements((OUT * IN * RANK * STEPS) as u64));
    group.bench_function("importance", |bencher| bencher.iter(|| importance(&steps)));
    group.bench_function("importance, plain", |bencher| {
        bencher.iter(|| reference::importance(&steps));
    });
    group.throughput(Throughput::Elements(((OUT + IN) * RANK) as u64));
    group.bench_function("norm by Gram matrices", |bencher| {
        bencher.iter(|| product_norm_squared(b, a));
    });
    group.bench_function("norm, plain", |bencher| {
        bencher.iter(|| reference::product_norm_squared(&steps[0]));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
