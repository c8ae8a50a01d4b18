"""Time, memory and error of SpecXAI beside what one would write instead: `specxai bench`."""
