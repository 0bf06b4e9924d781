"""What a recipe holds besides models: measured or learned data, each with a hash."""
