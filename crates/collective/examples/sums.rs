//! Sums what each process has and prints it; `torchrun --no-python --nproc-per-node 2 sums` runs it twice.

#![expect(clippy::print_stdout, reason = "an example shows what it found")]
use gradpruner_collective::{CollectiveError, Group};

fn main() -> Result<(), CollectiveError> {
    let Some(group) = Group::from_env()? else {
        println!("one process");
        return Ok(());
    };
    let rank = group.rank() as f32;
    // Several at a time, which are waited for in another order than they began in.
    let sums: Vec<_> = (0..4_u16)
        .map(|number| group.start_sum(vec![rank + f32::from(number); 3]))
        .collect::<Result<_, _>>()?;
    for sum in sums.into_iter().rev() {
        println!("{:?}", sum.wait()?);
    }
    println!("{:?}", group.sum(vec![0.1_f64 * f64::from(rank)])?);
    Ok(())
}
