//! `image`: build, load, save, list and remove images.
