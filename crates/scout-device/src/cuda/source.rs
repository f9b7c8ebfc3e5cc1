//! Sources of kernels, as they are built into the program.

/// One `.cu` file as it is built into the program: its text, and what the compiler made of it where there was one.
#[derive(Debug)]
pub struct KernelSource {
    pub name: &'static str,
    pub text: &'static str,
    /// Files that the text includes, by the name that it uses.
    pub headers: &'static [(&'static str, &'static str)],
    pub images: &'static [Image],
}

/// Machine code for one architecture: 90 stands for 9.0a, which runs on 9.0 alone; 80 runs on 8.x.
#[derive(Debug)]
pub struct Image {
    pub architecture: u32,
    pub code: &'static [u8],
}
