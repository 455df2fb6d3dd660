//! One plot: a rectangle with a time axis and an axis of values, and what can be drawn in it.

use super::canvas::{Anchor, Canvas};
use super::chart::BINS;
use super::look::{CAPTION, FRAME, GRID, NOTE};
use crate::report::axis::Axis;
use crate::report::fmt;
use crate::report::series::Span;

/// A plot: its rectangle, and its two axes.
pub(super) struct Plot<'a> {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) time: &'a Axis,
    pub(super) values: &'a Axis,
}

impl Plot<'_> {
    pub(super) fn x(&self, t: f64) -> f64 {
        self.left + self.time.fraction(t) * (self.right - self.left)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.bottom - self.values.fraction(value) * (self.bottom - self.top)
    }

    pub(super) fn holds(&self, bytes: u64) -> bool {
        bytes as f64 <= self.values.hi
    }

    pub(super) fn grid(&self, canvas: &mut Canvas) {
        for tick in &self.time.ticks {
            let x = self.x(tick.at);
            canvas.line("grid", (x, self.top), (x, self.bottom), GRID);
        }
        for tick in &self.values.ticks {
            let y = self.y(tick.at);
            canvas.line("grid", (self.left, y), (self.right, y), GRID);
            canvas.text((self.left - 7.0, y + 4.0), Anchor::End, NOTE, &tick.label);
        }
    }

    /// The two axes, drawn last so that nothing covers them.
    pub(super) fn frame(&self, canvas: &mut Canvas) {
        let corner = (self.left, self.bottom);
        canvas.line("axis", (self.left, self.top), corner, FRAME);
        canvas.line("axis", corner, (self.right, self.bottom), FRAME);
    }

    pub(super) fn time_labels(&self, canvas: &mut Canvas) {
        let y = self.bottom + 16.0;
        let mut taken = f64::NEG_INFINITY;
        for tick in &self.time.ticks {
            // Labels are short but for times far from 0; of those, as many as do not touch.
            let (x, half) = (self.x(tick.at), NOTE.width_of(&tick.label) / 2.0);
            if x - half > taken {
                canvas.text((x, y), Anchor::Middle, NOTE, &tick.label);
                taken = x + half + 4.0;
            }
        }
        let middle = (self.left + self.right) / 2.0;
        let unit = format!("time ({})", self.time.unit);
        canvas.text((middle, y + 16.0), Anchor::Middle, NOTE, &unit);
    }

    /// What the strip shows, its peak, and over how long the peak is a mean.
    pub(super) fn caption(
        &self,
        canvas: &mut Canvas,
        name: &str,
        span: Span,
        rates: &[f64],
        rate: impl Fn(f64) -> String,
    ) {
        let y = self.top - 7.0;
        let peak = rates.iter().copied().fold(0.0, f64::max);
        let note = match peak {
            0.0 => "none".to_owned(),
            _ => {
                let bin = fmt::duration_ms(span.length() / BINS as f64);
                format!("peak {} over {bin}", rate(peak))
            }
        };
        canvas.flow((self.left, y), &[(0.0, CAPTION, name), (10.0, NOTE, &note)]);
    }

    pub(super) fn bars(&self, canvas: &mut Canvas, class: &str, rates: &[f64], color: &str) {
        let width = (self.right - self.left) / rates.len() as f64;
        let gap = if width > 3.0 { 0.8 } else { 0.0 };
        let bars: Vec<(f64, f64, f64)> = (rates.iter().enumerate())
            .filter(|&(_, &rate)| rate > 0.0)
            .map(|(i, &rate)| {
                let left = self.left + i as f64 * width;
                // What is not nothing is seen, however small.
                (left, left + width - gap, self.y(rate).min(self.bottom - 1.0))
            })
            .collect();
        canvas.bars(class, &bars, self.bottom, color);
    }
}
