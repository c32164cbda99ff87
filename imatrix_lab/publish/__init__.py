"""From files to people: blind votes, cards, the Hub."""
