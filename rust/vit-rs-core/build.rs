//! Reads from libjpeg-turbo's installed configuration whether it was built with SIMD, and which version it is.

// Printing is how a build script speaks to Cargo.
#![allow(clippy::print_stdout)]

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_TURBOJPEG_INCLUDE");
    println!("cargo::rustc-check-cfg=cfg(jpeg_simd)");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    let config = include
        .split(',')
        .find_map(|folder| std::fs::read_to_string(Path::new(folder).join("jconfig.h")).ok());
    let defined = |name: &str| {
        config.iter().flat_map(|text| text.lines()).find_map(|line| {
            let mut words = line.split_whitespace();
            let found = words.next() == Some("#define") && words.next() == Some(name);
            found.then(|| words.next().unwrap_or_default().to_owned())
        })
    };
    if defined("WITH_SIMD").is_some() {
        println!("cargo::rustc-cfg=jpeg_simd");
    }
    let version = defined("LIBJPEG_TURBO_VERSION").unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=VIT_RS_JPEG_VERSION={version}");
}
