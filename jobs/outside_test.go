package jobs

// What the tests of package jobs_test use of this package's: they are outside because they import what imports it.
var NewTestStore = newStore

// TestRecipients and TestIdentities encrypt and open what the archive of a test holds.
var TestRecipients, TestIdentities = recipients, identities
