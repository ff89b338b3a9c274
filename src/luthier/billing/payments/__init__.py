"""Cards and payments: money comes in through a processor (Stripe, or an operator by hand) and into the ledger."""
