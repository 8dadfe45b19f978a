//! Tells the build scripts of who depends on it where `caught.h` lies: `DEP_GRADPRUNER_CAUGHT_INCLUDE`.

fn main() {
    println!("cargo::rerun-if-changed=native");
    println!("cargo::metadata=include={}/native", env!("CARGO_MANIFEST_DIR"));
}
