"""Money from outside: cards, payments, refunds, disputes and automatic recharging, through a processor."""
