//! Masks and merging of one weight, in the shape of a SmolLM2 `down_proj`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use merge::{Donor, keep_top, kept_count, merge_same_sign, reference};

const SIZE: usize = 576 * 1536;

fn values(salt: u32) -> Vec<f32> {
    (0..SIZE as u32)
        .map(|i| (i.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 16) as f32 / 65_536.0 - 0.5)
        .collect()
}

fn benches(criterion: &mut Criterion) {
    let (receiver, weight, scores) = (values(1), values(2), values(3));
    let count = kept_count(0.2, SIZE);
    let kept = keep_top(&scores, count);
    assert_eq!(kept, reference::keep_top(&scores, count));
    let donors = [Donor { weight: weight.as_slice(), kept: &kept }];
    assert_eq!(merge_same_sign(&receiver, &donors), reference::merge_same_sign(&receiver, &donors));
    let short =
        |values: &[f32]| -> Vec<bf16> { values.iter().copied().map(bf16::from_f32).collect() };
    let (short_receiver, short_weight) = (short(&receiver), short(&weight));
    let short_donors = [Donor { weight: short_weight.as_slice(), kept: &kept }];
    for (at, found) in merge_same_sign(&short_receiver, &short_donors).into_iter().enumerate() {
        let (own, theirs) = (short_receiver[at].to_f32(), short_weight[at].to_f32());
        let sum = if kept.get(at) && own * theirs > 0.0 { own + theirs } else { own };
        assert_eq!(found, bf16::from_f32(sum));
    }

    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10);
    group.throughput(Throughput::Elements(SIZE as u64));
    group.bench_function("mask", |bencher| bencher.iter(|| keep_top(&scores, count)));
    group.bench_function("mask, plain", |bencher| {
        bencher.iter(|| reference::keep_top(&scores, count));
    });
    group.bench_function("same-sign merge", |bencher| {
        bencher.iter(|| merge_same_sign(&receiver, &donors));
    });
    group.bench_function("same-sign merge, bf16", |bencher| {
        bencher.iter(|| merge_same_sign(&short_receiver, &short_donors));
    });
    group.bench_function("same-sign merge, plain", |bencher| {
        bencher.iter(|| reference::merge_same_sign(&receiver, &donors));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
