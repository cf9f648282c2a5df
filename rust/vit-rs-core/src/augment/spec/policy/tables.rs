//! What the policies draw from, as in torchvision v2.

/// An operation of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    SolarizeFrom,
    AutoContrast,
    Equalize,
    Invert,
}

/// The strengths of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Range {
    /// There is one.
    None,
    /// From 0 to this, either sign.
    Signed(f64),
    /// From 0 to this share of the image's width, either sign.
    Width(f64),
    /// From 0 to this share of the image's height, either sign.
    Height(f64),
    /// From this many bits, this many fewer.
    Bits(u8, f64),
    /// From 1 to 0.
    Threshold,
    /// From 255 to 0.
    Gray,
}

/// An operation and its strengths.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) range: Range,
}

const fn entry(name: Name, range: Range) -> Entry {
    Entry { name, range }
}

impl Entry {
    pub(super) const IDENTITY: Self = entry(Name::Identity, Range::None);
    /// torchvision v1 divides 255..0 where v2 divides 1..0 and multiplies: on PIL images some of their thresholds lie to
    /// both sides of a gray value.
    pub(super) const SOLARIZE_V1: Self = entry(Name::SolarizeFrom, Range::Gray);
    /// Of `AutoAugment` alone, whose other operations are those of `RandAugment`.
    pub(super) const INVERT: Self = entry(Name::Invert, Range::None);
}

pub(super) const RAND: &[Entry] = &[
    Entry::IDENTITY,
    entry(Name::ShearX, Range::Signed(0.3)),
    entry(Name::ShearY, Range::Signed(0.3)),
    entry(Name::TranslateX, Range::Width(150.0 / 331.0)),
    entry(Name::TranslateY, Range::Height(150.0 / 331.0)),
    entry(Name::Rotate, Range::Signed(30.0)),
    entry(Name::Brightness, Range::Signed(0.9)),
    entry(Name::Color, Range::Signed(0.9)),
    entry(Name::Contrast, Range::Signed(0.9)),
    entry(Name::Sharpness, Range::Signed(0.9)),
    entry(Name::Posterize, Range::Bits(8, 4.0)),
    entry(Name::Solarize, Range::Threshold),
    entry(Name::AutoContrast, Range::None),
    entry(Name::Equalize, Range::None),
];

pub(super) const WIDE: &[Entry] = &[
    Entry::IDENTITY,
    entry(Name::ShearX, Range::Signed(0.99)),
    entry(Name::ShearY, Range::Signed(0.99)),
    entry(Name::TranslateX, Range::Signed(32.0)),
    entry(Name::TranslateY, Range::Signed(32.0)),
    entry(Name::Rotate, Range::Signed(135.0)),
    entry(Name::Brightness, Range::Signed(0.99)),
    entry(Name::Color, Range::Signed(0.99)),
    entry(Name::Contrast, Range::Signed(0.99)),
    entry(Name::Sharpness, Range::Signed(0.99)),
    entry(Name::Posterize, Range::Bits(8, 6.0)),
    entry(Name::Solarize, Range::Threshold),
    entry(Name::AutoContrast, Range::None),
    entry(Name::Equalize, Range::None),
];

pub(super) const AUGMIX: &[Entry] = &[
    entry(Name::ShearX, Range::Signed(0.3)),
    entry(Name::ShearY, Range::Signed(0.3)),
    entry(Name::TranslateX, Range::Width(1.0 / 3.0)),
    entry(Name::TranslateY, Range::Height(1.0 / 3.0)),
    entry(Name::Rotate, Range::Signed(30.0)),
    entry(Name::Posterize, Range::Bits(4, 4.0)),
    entry(Name::Solarize, Range::Threshold),
    entry(Name::AutoContrast, Range::None),
    entry(Name::Equalize, Range::None),
];

/// What `AugMix` draws from too, if it draws from all.
pub(super) const AUGMIX_COLOR: &[Entry] = &[
    entry(Name::Brightness, Range::Signed(0.9)),
    entry(Name::Color, Range::Signed(0.9)),
    entry(Name::Contrast, Range::Signed(0.9)),
    entry(Name::Sharpness, Range::Signed(0.9)),
];

/// The data set for which a policy was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `ImageNet`.
    ImageNet,
    /// CIFAR-10.
    Cifar10,
    /// Street View House Numbers.
    Svhn,
}

/// Two operations, each with its probability and the index of its strength, of ten.
pub(super) type Pair = [(Name, f64, usize); 2];

impl Policy {
    pub(super) fn pairs(self) -> &'static [Pair] {
        match self {
            Self::ImageNet => IMAGENET,
            Self::Cifar10 => CIFAR10,
            Self::Svhn => SVHN,
        }
    }
}

const IMAGENET: &[Pair] = &[
    [(Name::Posterize, 0.4, 8), (Name::Rotate, 0.6, 9)],
    [(Name::Solarize, 0.6, 5), (Name::AutoContrast, 0.6, 0)],
    [(Name::Equalize, 0.8, 0), (Name::Equalize, 0.6, 0)],
    [(Name::Posterize, 0.6, 7), (Name::Posterize, 0.6, 6)],
    [(Name::Equalize, 0.4, 0), (Name::Solarize, 0.2, 4)],
    [(Name::Equalize, 0.4, 0), (Name::Rotate, 0.8, 8)],
    [(Name::Solarize, 0.6, 3), (Name::Equalize, 0.6, 0)],
    [(Name::Posterize, 0.8, 5), (Name::Equalize, 1.0, 0)],
    [(Name::Rotate, 0.2, 3), (Name::Solarize, 0.6, 8)],
    [(Name::Equalize, 0.6, 0), (Name::Posterize, 0.4, 6)],
    [(Name::Rotate, 0.8, 8), (Name::Color, 0.4, 0)],
    [(Name::Rotate, 0.4, 9), (Name::Equalize, 0.6, 0)],
    [(Name::Equalize, 0.0, 0), (Name::Equalize, 0.8, 0)],
    [(Name::Invert, 0.6, 0), (Name::Equalize, 1.0, 0)],
    [(Name::Color, 0.6, 4), (Name::Contrast, 1.0, 8)],
    [(Name::Rotate, 0.8, 8), (Name::Color, 1.0, 2)],
    [(Name::Color, 0.8, 8), (Name::Solarize, 0.8, 7)],
    [(Name::Sharpness, 0.4, 7), (Name::Invert, 0.6, 0)],
    [(Name::ShearX, 0.6, 5), (Name::Equalize, 1.0, 0)],
    [(Name::Color, 0.4, 0), (Name::Equalize, 0.6, 0)],
    [(Name::Equalize, 0.4, 0), (Name::Solarize, 0.2, 4)],
    [(Name::Solarize, 0.6, 5), (Name::AutoContrast, 0.6, 0)],
    [(Name::Invert, 0.6, 0), (Name::Equalize, 1.0, 0)],
    [(Name::Color, 0.6, 4), (Name::Contrast, 1.0, 8)],
    [(Name::Equalize, 0.8, 0), (Name::Equalize, 0.6, 0)],
];

const CIFAR10: &[Pair] = &[
    [(Name::Invert, 0.1, 0), (Name::Contrast, 0.2, 6)],
    [(Name::Rotate, 0.7, 2), (Name::TranslateX, 0.3, 9)],
    [(Name::Sharpness, 0.8, 1), (Name::Sharpness, 0.9, 3)],
    [(Name::ShearY, 0.5, 8), (Name::TranslateY, 0.7, 9)],
    [(Name::AutoContrast, 0.5, 0), (Name::Equalize, 0.9, 0)],
    [(Name::ShearY, 0.2, 7), (Name::Posterize, 0.3, 7)],
    [(Name::Color, 0.4, 3), (Name::Brightness, 0.6, 7)],
    [(Name::Sharpness, 0.3, 9), (Name::Brightness, 0.7, 9)],
    [(Name::Equalize, 0.6, 0), (Name::Equalize, 0.5, 0)],
    [(Name::Contrast, 0.6, 7), (Name::Sharpness, 0.6, 5)],
    [(Name::Color, 0.7, 7), (Name::TranslateX, 0.5, 8)],
    [(Name::Equalize, 0.3, 0), (Name::AutoContrast, 0.4, 0)],
    [(Name::TranslateY, 0.4, 3), (Name::Sharpness, 0.2, 6)],
    [(Name::Brightness, 0.9, 6), (Name::Color, 0.2, 8)],
    [(Name::Solarize, 0.5, 2), (Name::Invert, 0.0, 0)],
    [(Name::Equalize, 0.2, 0), (Name::AutoContrast, 0.6, 0)],
    [(Name::Equalize, 0.2, 0), (Name::Equalize, 0.6, 0)],
    [(Name::Color, 0.9, 9), (Name::Equalize, 0.6, 0)],
    [(Name::AutoContrast, 0.8, 0), (Name::Solarize, 0.2, 8)],
    [(Name::Brightness, 0.1, 3), (Name::Color, 0.7, 0)],
    [(Name::Solarize, 0.4, 5), (Name::AutoContrast, 0.9, 0)],
    [(Name::TranslateY, 0.9, 9), (Name::TranslateY, 0.7, 9)],
    [(Name::AutoContrast, 0.9, 0), (Name::Solarize, 0.8, 3)],
    [(Name::Equalize, 0.8, 0), (Name::Invert, 0.1, 0)],
    [(Name::TranslateY, 0.7, 9), (Name::AutoContrast, 0.9, 0)],
];

const SVHN: &[Pair] = &[
    [(Name::ShearX, 0.9, 4), (Name::Invert, 0.2, 0)],
    [(Name::ShearY, 0.9, 8), (Name::Invert, 0.7, 0)],
    [(Name::Equalize, 0.6, 0), (Name::Solarize, 0.6, 6)],
    [(Name::Invert, 0.9, 0), (Name::Equalize, 0.6, 0)],
    [(Name::Equalize, 0.6, 0), (Name::Rotate, 0.9, 3)],
    [(Name::ShearX, 0.9, 4), (Name::AutoContrast, 0.8, 0)],
    [(Name::ShearY, 0.9, 8), (Name::Invert, 0.4, 0)],
    [(Name::ShearY, 0.9, 5), (Name::Solarize, 0.2, 6)],
    [(Name::Invert, 0.9, 0), (Name::AutoContrast, 0.8, 0)],
    [(Name::Equalize, 0.6, 0), (Name::Rotate, 0.9, 3)],
    [(Name::ShearX, 0.9, 4), (Name::Solarize, 0.3, 3)],
    [(Name::ShearY, 0.8, 8), (Name::Invert, 0.7, 0)],
    [(Name::Equalize, 0.9, 0), (Name::TranslateY, 0.6, 6)],
    [(Name::Invert, 0.9, 0), (Name::Equalize, 0.6, 0)],
    [(Name::Contrast, 0.3, 3), (Name::Rotate, 0.8, 4)],
    [(Name::Invert, 0.8, 0), (Name::TranslateY, 0.0, 2)],
    [(Name::ShearY, 0.7, 6), (Name::Solarize, 0.4, 8)],
    [(Name::Invert, 0.6, 0), (Name::Rotate, 0.8, 4)],
    [(Name::ShearY, 0.3, 7), (Name::TranslateX, 0.9, 3)],
    [(Name::ShearX, 0.1, 6), (Name::Invert, 0.6, 0)],
    [(Name::Solarize, 0.7, 2), (Name::TranslateY, 0.6, 7)],
    [(Name::ShearY, 0.8, 4), (Name::Invert, 0.8, 0)],
    [(Name::ShearX, 0.7, 9), (Name::TranslateY, 0.8, 3)],
    [(Name::ShearY, 0.8, 5), (Name::AutoContrast, 0.7, 0)],
    [(Name::ShearX, 0.7, 2), (Name::Invert, 0.1, 0)],
];
