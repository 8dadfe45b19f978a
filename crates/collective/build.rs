//! Builds the few C functions over c10d's classes, against the libtorch that `LIBTORCH` names.

fn main() {
    println!("cargo::rerun-if-changed=native");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    // torch-sys says what is wrong where it is not set.
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return };
    let caught = std::env::var("DEP_GRADPRUNER_CAUGHT_INCLUDE").unwrap_or_default();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("USE_C10D_GLOO", None)
        .include("native")
        .include(caught)
        .include(format!("{libtorch}/include"))
        .include(format!("{libtorch}/include/torch/csrc/api/include"))
        .file("native/group.cpp")
        .file("native/nccl.cpp")
        .compile("gradpruner_collective");
    println!("cargo::rustc-link-search=native={libtorch}/lib");
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
}
