"""What a job costs: prices and exact token counts."""
